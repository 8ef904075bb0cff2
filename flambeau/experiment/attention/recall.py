"""Which kinds of attention find again what lies beyond their window."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from flambeau.data import derive_generator
from flambeau.data.recall import Recall
from flambeau.experiment.attention import figures
from flambeau.experiment.attention.cost import counted_products
from flambeau.models.language.recall_net import RecallNet
from flambeau.nn.attention import collect_aux
from flambeau.nn.attention.diagnostics import attention_weights, occupancy
from flambeau.training import Trainer


@dataclass(frozen=True)
class Recalled:
    """accuracy: on fresh sequences. model: as trained. history: of the training loss."""

    accuracy: float
    model: RecallNet
    history: list[float]


def train_recall(
    attention: Callable[[], nn.Module],
    task: Recall,
    trainer: Trainer,
    *,
    dim: int,
    batch_size: int,
    sequences: int,
    seed: int,
    device: torch.device,
    folder: Path,
    progress: Any = None,
) -> Recalled:
    """Train one layer on ever new sequences, and test it on `sequences` others."""
    torch.manual_seed(seed)
    model = RecallNet(attention(), dim, keys=2 * task.pairs, values=task.values).to(device)

    def data(step: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return task.sample(batch_size, derive_generator(generator.initial_seed(), "recall", step))

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        tokens, answers = batch
        logits = model(tokens)[:, -answers.shape[1] :]
        return F.cross_entropy(logits.flatten(0, 1), answers.flatten()) + collect_aux(model)

    fit = trainer.fit(model, loss, data, folder=folder, progress=progress, seed=seed)
    tokens, answers = task.sample(sequences, derive_generator(seed, "recall", "test"))
    with torch.no_grad():
        predicted = model(tokens.to(device))[:, -task.pairs :].argmax(-1).cpu()
    accuracy = (predicted == answers).double().mean().item()
    return Recalled(accuracy, model, [entry["loss"] for entry in fit.history])


def measure_recall(run: Any, task: Recall, recalled: Mapping[str, Recalled], sequences: int) -> None:
    """Accuracies, products, clusters and the leak of `recalled`: "full", "causal", "balanced", "random", "local"."""
    layers = {name: one.model.attention for name, one in recalled.items()}
    for name, one in recalled.items():
        run.measure(name, ours=one.accuracy, baseline=1 / task.values, value=one.accuracy)
    tokens = task.sample(sequences, derive_generator(run.seed, "recall", "shown"))[0].to(run.device)
    x = {name: one.model.embed(tokens).detach() for name, one in recalled.items()}
    products = {name: counted_products(layer, x[name][:1]) for name, layer in layers.items()}
    worst = max(products["causal"], products["balanced"])
    run.measure("products", ours=worst / 1e6, baseline=products["full"] / 1e6, value=worst / products["full"])
    shares = {name: occupancy(layers[name], x[name]) for name in ("causal", "balanced")}
    largest = {name: share.max().item() for name, share in shares.items()}
    run.measure("largest_cluster", ours=largest["causal"], value=largest["causal"])
    leaks = {name: changed_by_the_future(layers[name], x[name]) for name in ("causal", "balanced")}
    run.measure("leak", ours=leaks["causal"], baseline=leaks["balanced"], value=leaks["balanced"])
    rows = []
    for name, one in recalled.items():
        row = {"attention": name, "accuracy": one.accuracy, "last loss": one.history[-1]}
        row |= {"products over full": products[name] / products["full"], "largest cluster": largest.get(name)}
        rows.append(row)
    run.table("recall", rows)
    run.table(
        "share of the tokens by cluster, causal selection",
        [{"head": head} | {str(c): share for c, share in enumerate(row)} for head, row in enumerate(shares["causal"])],
    )
    accuracy = {name: one.accuracy for name, one in recalled.items()}
    losses = {name: one.history for name, one in recalled.items()}
    run.figure("recall", figures.recall_figure(accuracy, losses, 1 / task.values))
    first = {name: attention_weights(layers[name], x[name][:1])[0] for name in ("local", "full", "causal")}
    head = int(first["causal"][:, -task.pairs :, : task.pairs].sum((1, 2)).argmax())  # the one that recalls most
    layer = layers["causal"]
    clusters = layer.kmeans(layer.project(x["causal"][:1])[0]).index[0, head]
    shown = {"local": "local attention", "full": "full attention", "causal": "routing attention"}
    weights = {f"{shown[name]}, one head": matrix[head] for name, matrix in first.items()}
    run.figure("pattern", figures.pattern_figure(weights, clusters, (task.pairs, task.pairs + task.distractors)))


@torch.no_grad()
def changed_by_the_future(layer: nn.Module, x: Float[Tensor, "batch time dim"]) -> float:
    """Share of the tokens of the first three quarters whose output changes when the last quarter is that of another
    sequence of the batch."""
    keep = x.shape[1] * 3 // 4
    other = torch.cat([x[:, :keep], x[:, keep:].roll(1, 0)], 1)
    difference = (layer(x)[0] - layer(other)[0])[:, :keep].abs().amax(-1)
    return (difference > 1e-5).double().mean().item()
