"""NAR: neighbouring autoregressive generation (He et al. 2025, arXiv 2503.10696)."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch

from flambeau.data.seeding import derive_generator, derive_seed
from flambeau.data.token_grids import TokenGrids, digit_tokens
from flambeau.experiment import Claim, experiment
from flambeau.experiment.tokens.grid_figures import bits_figure, order_figure, sheet_figure
from flambeau.experiment.tokens.grid_models import (
    Contender,
    class_agreement,
    contender_row,
    drawing_rates,
    large_models_rates,
    token_grids,
    train_group_model,
    train_raster_model,
)
from flambeau.models.language import Decoder
from flambeau.models.token_grid import NAR, QueryDecoder
from flambeau.nn.order import custom, diagonal, random_order
from flambeau.symbolic import symbolize
from flambeau.training import Trainer, WarmupCosine

CLAIMS = [
    Claim(
        "chunks",
        "bits a token fewer than with consecutive tokens drawn together, at equal steps and parameters",
        unit="bits",
        at_least=0.03,
    ),
    Claim(
        "random_groups",
        "bits a token fewer than with random groups drawn together, at equal steps and parameters",
        unit="bits",
        at_least=0.03,
    ),
    Claim(
        "raster",
        "bits a token more than next-token prediction at equal parameters, which takes a step for every token",
        unit="bits",
        at_most=0.05,
    ),
    Claim("forwards", "forwards of next-token generation over ours", paper="256 / 31 = 8.3x", unit="x", at_least=4.0),
    Claim(
        "speed",
        "grids a second over next-token generation, both with a cache, 32 at a time",
        paper="2.4x PAR-4x (A100)",
        unit="x",
        at_least=2.5,
    ),
    Claim(
        "classes",
        "share of samples recognised as the class they were drawn for, over that of next-token generation",
        unit="x",
        at_least=0.9,
    ),
    Claim(
        "gpu_speed",
        "grids a second over next-token generation, one at a time, 16 x 16 tokens, models of size L",
        unit="x",
        at_least=6.0,
        needs="gpu",
    ),
]
PRESETS: dict[str, dict[str, Any]] = {
    "smoke": {"width": 16, "depth": 1, "heads": 2, "samples": 10, "batches": (1,), "training.steps": 2},
    "paper": {
        "data": "codes/", "test": 50000, "width": 1024, "depth": 24, "heads": 16, "batch_size": 256, "samples": 50000,
        "training.steps": 1500000, "training.schedule": None, "training.precision": "bf16",
    },
}  # fmt: skip


@experiment("nar", claims=CLAIMS, presets=PRESETS)
def run(
    run,
    *,
    data: TokenGrids | str = symbolize(digit_tokens)(),
    test: int = 297,
    width: int = 48,
    depth: int = 3,
    heads: int = 4,
    extra_blocks: int = 1,
    batch_size: int = 48,
    training: Trainer = symbolize(Trainer)(
        steps=200,
        optimizer=symbolize(torch.optim.AdamW).partial(lr=2e-3, betas=(0.9, 0.95), weight_decay=0.05),
        schedule=symbolize(WarmupCosine)(),
        clip=1.0,
    ),
    samples: int = 500,
    batches: tuple[int, ...] = (1, 8, 32, 128),
) -> None:
    """Generate all cells of equal distance from a corner together: far fewer steps at the same likelihood.

    data: token grids, or a file or folder of a tokenizer's codes (.npz, or .tar of .npy and .cls).
    test: grids held out for the likelihood.
    width: of all networks.
    depth: of the trunk; models without extra blocks are deeper by as many, to have as many parameters.
    heads: of the attention.
    extra_blocks: of the head of every axis but the last.
    batch_size: grids in a step.
    training: of each network.
    samples: drawn to be classified.
    batches: numbers of grids drawn at once, of which the speed is compared.
    """
    grids = token_grids(data)
    train, held_out = grids.split(test, run.seed)
    grid, vocab, classes, cells = grids.grid, grids.vocab, grids.classes, math.prod(grids.grid)
    steps = diagonal(grid).steps
    chunks = custom(torch.arange(cells).tensor_split(steps), grid)
    orders = {"chunks": chunks, "random groups": random_order(grid, derive_seed(run.seed, "order") % 2**32, steps)}

    def fitted(name: str, build: Any) -> Contender:
        torch.manual_seed(run.seed)
        return train_group_model(run, name, build(), train, held_out, training, batch_size)

    whole = depth + extra_blocks
    ours = fitted("nar", lambda: NAR(vocab, grid, width, depth, heads, classes=classes, extra_blocks=extra_blocks))
    contenders = [
        fitted(name, partial(QueryDecoder, vocab, order, width, whole, heads, classes=classes))
        for name, order in orders.items()
    ]
    by_chunks, by_random = contenders
    one_head = fitted("one head", partial(NAR, vocab, grid, width, depth, heads, classes=classes, mix="single"))
    torch.manual_seed(run.seed)
    decoder = Decoder(vocab, cells, width, whole, heads, grid=grid, conditions=classes + 1)
    raster = train_raster_model(run, decoder, train, held_out, training, batch_size)

    run.measure("chunks", ours=ours.bits, baseline=by_chunks.bits, value=by_chunks.bits - ours.bits)
    run.measure("random_groups", ours=ours.bits, baseline=by_random.bits, value=by_random.bits - ours.bits)
    run.measure("raster", ours=ours.bits, baseline=raster.bits, value=ours.bits - raster.bits)
    run.measure("forwards", ours=ours.forwards, baseline=raster.forwards, value=raster.forwards / ours.forwards)

    labels = torch.arange(samples, device=run.device) % classes
    drawn = {c.name: c.draw(labels, derive_generator(run.seed, "samples")) for c in (ours, raster)}
    if classes > 1:
        a, b = (class_agreement(train, drawn[name], labels) for name in ("nar", "raster"))
        run.measure("classes", ours=a, baseline=b, value=a / max(b, 1e-9))
    else:
        run.unmeasured("classes", why="needs labels of two classes")
    rates = drawing_rates(run, ours, raster, batches, classes)
    at = 32 if 32 in rates else max(rates)
    run.measure("speed", ours=rates[at][0], baseline=rates[at][1], value=rates[at][0] / rates[at][1])

    every = [ours, raster, *contenders, one_head]
    run.table("models", [contender_row(run, contender) for contender in every])
    speed = [{"grids at once": n, "nar /s": a, "raster /s": b, "times": a / b} for n, (a, b) in rates.items()]
    run.table("speed", speed)
    run.figure("bits", bits_figure({c.name: (c.forwards, c.bits) for c in every}))
    if len(grid) == 2:
        run.figure(
            "samples",
            sheet_figure(
                {f"{n}: {c.forwards} forwards": drawn[n] for n, c in (("nar", ours), ("raster", raster))}, vocab
            ),
        )
        run.figure("order", order_figure(diagonal(grid)))
    if run.device.type == "cuda":
        a_second, baseline = large_models_rates(run)
        run.measure("gpu_speed", ours=a_second, baseline=baseline, value=a_second / baseline)
    else:
        run.unmeasured("gpu_speed", why="no GPU")
