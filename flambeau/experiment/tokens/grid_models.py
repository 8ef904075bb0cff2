"""Models of token grids, trained and compared on likelihood, speed and the class of their samples."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from sklearn.svm import SVC
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from flambeau.data import Batches
from flambeau.data.seeding import derive_generator
from flambeau.data.token_grids import TokenGrids, digit_tokens, read_codes
from flambeau.experiment.run import Run
from flambeau.generation import generate
from flambeau.generation.group_parallel import generate_grid
from flambeau.models.language import Decoder
from flambeau.models.token_grid import NAR
from flambeau.models.token_grid.grid_model import GridModel
from flambeau.ops.bench import interleaved
from flambeau.training import Trainer


@dataclass(frozen=True)
class Contender:
    """A trained model of grids, whatever its kind.

    bits: -log2 likelihood a cell on held-out grids. draw: labels and generator to grids. forwards: a grid takes.
    parameters: of the model.
    """

    name: str
    model: nn.Module
    bits: float
    draw: Callable[[Int[Tensor, " batch"], torch.Generator], Int[Tensor, "batch ..."]]
    forwards: int

    @property
    def parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.model.parameters())


def token_grids(data: TokenGrids | str | Path) -> TokenGrids:
    """Grids with labels; those without get one class. A path is a file or folder of codes; "digits" the digits."""
    grids = digit_tokens() if data == "digits" else data
    grids = read_codes(grids) if isinstance(grids, str | Path) else grids
    if grids.labels is not None:
        return grids
    return TokenGrids(grids.tokens, grids.vocab, torch.zeros(len(grids), dtype=torch.long), 1)


def train_group_model(
    run: Run, name: str, model: GridModel, train: TokenGrids, test: TokenGrids, training: Trainer, batch_size: int
) -> Contender:
    """Fit a model that draws a group of cells in one forward."""
    folder = run.folder / "train" / name.replace(" ", "_")
    batches = Batches((train.tokens, train.labels), batch_size)
    training.fit(model.to(run.device), grid_loss, batches, folder=folder, progress=run.progress, seed=run.seed)
    bits = held_out_bits(lambda tokens, labels: model.nll(tokens, labels), test, run.device)

    def draw(labels: Tensor, generator: torch.Generator) -> Tensor:
        return generate_grid(model, labels, generator=generator).tokens

    return Contender(name, model, bits, draw, model.order.steps)


def train_raster_model(
    run: Run, model: Decoder, train: TokenGrids, test: TokenGrids, training: Trainer, batch_size: int
) -> Contender:
    """Fit a next-token model in raster order behind a class token, with the label dropping of the others."""
    cells = math.prod(train.grid)
    batches = Batches((train.tokens, train.labels), batch_size)
    folder = run.folder / "train" / "raster"
    training.fit(model.to(run.device), raster_loss, batches, folder=folder, progress=run.progress, seed=run.seed)

    def nll(tokens: Tensor, labels: Tensor) -> Tensor:
        sequence = torch.cat([model.vocab + labels[:, None], tokens.flatten(1)], 1)
        logits = model(sequence[:, :-1]).transpose(1, 2)
        return F.cross_entropy(logits, sequence[:, 1:], reduction="none").sum(1) / math.log(2)

    def draw(labels: Tensor, generator: torch.Generator) -> Tensor:
        out = generate(model, (model.vocab + labels)[:, None], cells, generator=generator)
        return out.tokens[:, 1:].unflatten(1, train.grid)

    return Contender("raster", model, held_out_bits(nll, test, run.device), draw, cells)


def grid_loss(model: GridModel, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Loss of grids given their labels."""
    return model.loss(*batch)


def raster_loss(model: Decoder, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Next-token loss behind a class token, which is the null class for a tenth of the samples."""
    tokens, labels = batch
    null = model.input_vocab - model.vocab - 1
    labels = labels.masked_fill(torch.rand(len(labels), device=labels.device) < 0.1, null)
    sequence = torch.cat([model.vocab + labels[:, None], tokens.flatten(1)], 1)
    return F.cross_entropy(model(sequence[:, :-1]).flatten(0, 1), sequence[:, 1:].flatten())


@torch.no_grad()
def held_out_bits(
    nll: Callable[[Tensor, Tensor], Float[Tensor, " batch"]], test: TokenGrids, device: torch.device
) -> float:
    """Mean bits a cell."""
    assert test.labels is not None
    pairs = zip(test.tokens.split(256), test.labels.split(256))
    total = torch.cat([nll(tokens.to(device), labels.to(device)) for tokens, labels in pairs]).sum()
    return total.item() / test.tokens.numel()


def class_agreement(train: TokenGrids, grids: Int[Tensor, "batch ..."], labels: Int[Tensor, " batch"]) -> float:
    """Share of grids that a support vector machine, fitted to real ones, gives the class they were drawn for."""
    assert train.labels is not None
    judge = SVC(C=10.0).fit(train.tokens.flatten(1).numpy() / train.vocab, train.labels.numpy())
    return float((judge.predict(grids.cpu().flatten(1).numpy() / train.vocab) == labels.cpu().numpy()).mean())


def contender_row(run: Run, contender: Contender) -> dict[str, Any]:
    """A line of the table: likelihood, steps, size and operations of one grid drawn."""
    with FlopCounterMode(display=False) as counter:
        contender.draw(torch.zeros(1, dtype=torch.long, device=run.device), derive_generator(run.seed, "count"))
    operations = counter.get_total_flops() / 2 / 1e6
    return {
        "model": contender.name, "bits a token": contender.bits, "forwards": contender.forwards,
        "parameters": contender.parameters, "million multiply-adds a grid": operations,
    }  # fmt: skip


def drawing_rates(
    run: Run, ours: Contender, raster: Contender, batches: tuple[int, ...], classes: int
) -> dict[int, tuple[float, float]]:
    """Grids a second of both, in turns, for each number of grids at once."""
    found = {}
    wait = torch.cuda.synchronize if run.device.type == "cuda" else (lambda: None)
    for count in batches:
        labels = torch.arange(count, device=run.device) % classes
        calls = {c.name: partial(c.draw, labels, derive_generator(run.seed, "speed")) for c in (ours, raster)}
        seconds = interleaved(calls, repeats=3, synchronize=wait)
        found[count] = (count / seconds["nar"].wall, count / seconds["raster"].wall)
    return found


def large_models_rates(run: Run) -> tuple[float, float]:
    """Grids a second, one at a time, of untrained models of size L in half precision: NAR's, and raster's."""
    with run.device:
        nar = NAR(16384, (16, 16), 1024, 24, 16, classes=1000).to(torch.bfloat16).eval()
        decoder = Decoder(16384, 256, 1024, 25, 16, grid=(16, 16), conditions=1001).to(torch.bfloat16).eval()
    label = torch.zeros(1, dtype=torch.long, device=run.device)
    calls = {
        "nar": lambda: generate_grid(nar, label),
        "raster": lambda: generate(decoder, 16384 + label[:, None], 256),
    }
    seconds = interleaved(calls, repeats=3, synchronize=torch.cuda.synchronize)
    return 1 / seconds["nar"].wall, 1 / seconds["raster"].wall
