"""Fine-tuning one pretrained classifier with its normalisations in train, eval, tune and deploy mode."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flambeau.data import Batches, ImageSet, derive_generator
from flambeau.deployment.rewriting import deploy_mode, tune_mode
from flambeau.models.vision.huggingface import pretrained_classifier
from flambeau.nn import freeze_statistics
from flambeau.objectives.adversarial import pgd
from flambeau.ops.bench import interleaved
from flambeau.ops.saved_tensors import SavedTensors
from flambeau.training import Trainer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MODES = ("train", "eval", "tune", "deploy")
DIVERGED = 1000.0  # what is reported as the ratio to a loss that is not finite
LAST = 10  # steps whose mean is the final loss


@dataclass(frozen=True)
class Task:
    """A pretrained model, on the device it runs on, and the labelled images it is fine-tuned on."""

    model: nn.Module
    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor


@dataclass(frozen=True)
class FineTuned:
    """Training loss of every step (up to where it stopped being finite), final loss, and accuracy on the test part."""

    losses: list[float]
    loss: float
    accuracy: float


def standardised(images: Tensor) -> Tensor:
    """Images in [0, 1] as the models here take them: in [-2, 2]."""
    return (images - 0.5) * 4


def cross_entropy(model: Callable[[Tensor], Tensor], batch: Sequence[Tensor]) -> Tensor:
    """Mean cross-entropy of a batch (images, labels)."""
    return F.cross_entropy(model(batch[0]), batch[1])


def pretrained(
    model: Callable[..., nn.Module] | str, source: ImageSet, data: ImageSet, trainer: Trainer, batch_size: int, run: Any
) -> Task:
    """The model trained on `source`, or loaded from "hf:NAME", with a new last layer for the classes of `data`."""
    assert source.labels is not None and data.labels is not None
    train, test = data.split((0.6, 0.4), run.seed)
    classes = int(data.labels.max()) + 1
    torch.manual_seed(run.seed)
    if isinstance(model, str):
        if not model.startswith("hf:"):
            raise ValueError(f"model must be hf:FOLDER, hf:NAME or a network of this library, got {model!r}")
        net: nn.Module = pretrained_classifier(model.removeprefix("hf:"), classes)
    else:
        channels = data.images.shape[1]
        net = model(in_channels=channels, classes=int(source.labels.max()) + 1).to(run.device)
        x = standardised(source.images).expand(-1, channels, -1, -1)  # grey photographs, images in colour
        batches = Batches((x, source.labels), min(batch_size, len(source)))
        folder = run.folder / "train" / "pretraining"
        trainer.fit(net, cross_entropy, batches, folder=folder, progress=run.progress, seed=run.seed)
        name, head = [(n, m) for n, m in net.named_modules() if isinstance(m, nn.Linear)][-1]
        torch.manual_seed(run.seed)
        parent, _, attribute = name.rpartition(".")
        setattr(net.get_submodule(parent), attribute, nn.Linear(head.in_features, classes))
    tensors = (standardised(train.images), train.labels, standardised(test.images), test.labels)
    return Task(net.to(run.device).eval(), *(tensor.to(run.device) for tensor in tensors))  # type: ignore[union-attr]


def in_mode(model: nn.Module, mode: str, example: Tensor) -> nn.Module:
    """A copy ready to train: statistics of the batch ("train"), fixed ("eval", "tune"), or taken in ("deploy")."""
    model = copy.deepcopy(model).eval()
    if mode == "deploy":
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "the factors of the channels")  # its training is what is studied
            deploy_mode(model, example)
    elif mode != "train":
        freeze_statistics(model)
        if mode == "tune":
            tune_mode(model, example)
    return model.train()


def fine_tune(task: Task, mode: str, rate: float, trainer: Trainer, batch_size: int, name: str, run: Any) -> FineTuned:
    """Train a copy of the model in `mode` with the trainer's optimiser at learning rate `rate`."""
    model = in_mode(task.model, mode, task.train_x[:2])
    seen: list[Tensor] = []

    def recorded(model: nn.Module, batch: Sequence[Tensor]) -> Tensor:
        loss = cross_entropy(model, batch)
        seen.append(loss.detach())
        return loss

    trainer = replace(trainer, optimizer=partial(trainer.optimizer, lr=rate))
    batches = Batches((task.train_x, task.train_y), min(batch_size, len(task.train_x)))
    folder = run.folder / "train" / f"{name}_{mode}_{rate:g}"
    try:
        fit = trainer.fit(model, recorded, batches, folder=folder, progress=run.progress, seed=run.seed)
    except FloatingPointError:
        return FineTuned([float(loss) for loss in seen], math.inf, math.nan)
    losses = [entry["loss"] for entry in fit.history]
    final = sum(losses[-LAST:]) / len(losses[-LAST:])
    return FineTuned(losses, final, accuracy(model, task.test_x, task.test_y))


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Share of right answers."""
    return float(torch.cat([model(part).argmax(1) for part in x.split(256)]).eq(y).double().mean())


def best_rate(results: Mapping[tuple[str, float], FineTuned], mode: str) -> float:
    """The learning rate of the lowest final loss of a mode."""
    return min((rate for m, rate in results if m == mode), key=lambda rate: results[mode, rate].loss)


def rows(results: Mapping[tuple[str, float], FineTuned]) -> list[dict[str, Any]]:
    """The table of trainings by mode and learning rate."""
    return [
        {"mode": mode, "learning rate": rate, "final loss": one.loss, "test accuracy": one.accuracy}
        for (mode, rate), one in results.items()
    ]


def step_costs(task: Task, batch_size: int, repeats: int) -> dict[str, tuple[float, int]]:
    """Seconds of a step's forward and backward pass, timed in turns, and bytes kept between them, for every mode."""
    x, y = task.train_x[:batch_size], task.train_y[:batch_size]
    steps, kept = {}, {}
    for mode in MODES:
        model = in_mode(task.model, mode, x[:2])
        with SavedTensors(exclude=[*model.parameters(), *model.buffers(), x, y]) as saved:
            cross_entropy(model, (x, y))
        kept[mode] = saved.bytes
        steps[mode] = partial(_step, model, x, y)
    seconds = _seconds(steps, repeats, x.device)
    return {mode: (seconds[mode], kept[mode]) for mode in MODES}


def attack(task: Task, images: int, steps: int, repeats: int, seed: int) -> tuple[dict[str, float], float, float]:
    """PGD in eval and tune mode: seconds of each, largest difference of the float64 perturbations, accuracy left.

    In float32 the rounding of a gradient close to zero may turn its sign; in float64 the two attacks are the same.
    """
    x, y = task.test_x[:images], task.test_y[:images]

    def run(model: nn.Module, x: Tensor) -> Tensor:
        noise = derive_generator(seed, "attack")
        return pgd(model, x, y, 4 * 8 / 255, 4 * 2 / 255, steps, bounds=(-2.0, 2.0), generator=noise)

    models = {mode: in_mode(task.model, mode, x[:2]).eval().requires_grad_(False) for mode in ("eval", "tune")}
    seconds = _seconds({mode: partial(run, model, x) for mode, model in models.items()}, repeats, x.device)
    moved = {}
    for mode in models:
        double = in_mode(copy.deepcopy(task.model).double(), mode, x[:2].double()).eval().requires_grad_(False)
        moved[mode] = run(double, x.double())
    gap = float((moved["eval"] - moved["tune"]).abs().max())
    return seconds, gap, accuracy(double, moved["tune"], y)


def losses_figure(groups: Mapping[str, Mapping[str, list[float]]]) -> Figure:
    """Training losses over steps, a panel for each group of labelled curves."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * len(groups), 3.4))
    styles: dict[str, dict[str, Any]] = {"eval": dict(lw=4, alpha=0.4), "tune": dict(ls="--")}
    for axis, (title, curves) in zip(figure.subplots(1, len(groups), squeeze=False)[0], groups.items()):
        for label, losses in curves.items():
            shown = [loss if math.isfinite(loss) and loss < 20 else math.nan for loss in losses]
            axis.plot(range(1, len(shown) + 1), shown, label=label, **styles.get(label, {}))
        axis.set_yscale("log")
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("step")
        axis.set_ylabel("training loss")
        axis.legend(fontsize=8)
    figure.tight_layout()
    return figure


def _step(model: nn.Module, x: Tensor, y: Tensor) -> None:
    model.zero_grad(set_to_none=True)
    cross_entropy(model, (x, y)).backward()


def _seconds(runs: Mapping[str, Callable[[], object]], repeats: int, device: torch.device) -> dict[str, float]:
    """Best of runs taken in turns: CPU time over all threads, which other programs disturb least, or GPU wall time."""
    if device.type == "cuda":
        timings = interleaved(runs, repeats, partial(torch.cuda.synchronize, device))
        return {name: timing.wall for name, timing in timings.items()}
    return {name: timing.cpu for name, timing in interleaved(runs, repeats).items()}
