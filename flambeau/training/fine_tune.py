"""Training a classifier from a pre-trained network."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from flambeau.data import Batches, ImageSet
from flambeau.data.images.public import Pictures
from flambeau.training.layer_decay import LayerDecay
from flambeau.training.progress import Progress
from flambeau.training.trainer import Fit, Trainer

Transform = Callable[[Tensor, torch.Generator], Tensor]


def fine_tune(
    network: nn.Module,
    train: ImageSet | Dataset,
    *,
    trainer: Trainer,
    batch_size: int = 64,
    transform: Transform | None = None,
    layer_decay: float | None = None,
    frozen: str | None = None,
    frozen_steps: int = 0,
    evaluate: Callable[[Any], Mapping[str, float]] | None = None,
    folder: Path | str | None = None,
    progress: Progress | None = None,
    seed: int = 0,
) -> Fit:
    """Train `network` in place by cross-entropy, as :meth:`Trainer.fit` does; the history has the batches' accuracy.

    Args:
        network: images [B, C, H, W] to logits [B, classes].
        train: images with labels, or a map-style dataset of (image, label), such as pictures left on disk.
        trainer: how long, with which optimiser and schedule.
        batch_size: images a batch; smaller where there are fewer.
        transform: augmentation of the images, ``transform(images, generator)``; see :mod:`flambeau.data.augment`.
        layer_decay: smaller rates for earlier layers, see :class:`~flambeau.training.layer_decay.LayerDecay`.
        frozen: name of a submodule, such as ``"backbone"``, that stays as it is for the first `frozen_steps`: no
            gradient, no weight decay, no change of its running statistics, which it uses meanwhile (no dropout either).
        frozen_steps: optimiser steps before it is trained as well.
        evaluate, folder, progress, seed: as in :meth:`Trainer.fit`.

    Raises:
        ValueError: images without labels, fewer logits than classes, an unknown submodule, one without which nothing
            is left to train, or `frozen` and `frozen_steps` without each other.
    """
    if frozen_steps < 0 or bool(frozen_steps) != (frozen is not None):
        raise ValueError(f"frozen and a positive frozen_steps go together, got {frozen!r} and {frozen_steps}")
    if frozen is not None:
        _check_frozen(network, frozen)
    classes = 0
    if isinstance(train, (ImageSet, Pictures)):
        if train.labels is None:
            raise ValueError("train has no labels")
        classes = len(train.classes) if train.classes is not None else int(train.labels.max()) + 1
    source: Any = (train.images, train.labels) if isinstance(train, ImageSet) else train
    if layer_decay is not None:
        trainer = replace(trainer, optimizer=LayerDecay(trainer.optimizer, network, layer_decay))
    count = len(train)  # type: ignore[arg-type]
    on_images = None if transform is None else _OnImages(transform)
    data = _Numbered(source, min(batch_size, count), transform=on_images)
    loss = _CrossEntropy(classes, frozen, frozen_steps * trainer.accumulate)
    return trainer.fit(network, loss, data, evaluate=evaluate, folder=folder, progress=progress, seed=seed)


class _Numbered(Batches):
    """Batches that carry their number, from which the loss knows whether a part is still frozen."""

    def batch(self, step: int, generator: torch.Generator) -> tuple[Tensor, Tensor, int]:
        images, labels = super().batch(step, generator)
        return images, labels, step


@dataclass(frozen=True)
class _OnImages:
    """A transform of images as one of (images, labels)."""

    transform: Transform

    def __call__(self, batch: tuple[Tensor, Tensor], generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return self.transform(batch[0], generator), batch[1]


@dataclass(frozen=True)
class _CrossEntropy:
    classes: int
    frozen: str | None
    frozen_batches: int

    def __call__(
        self,
        network: nn.Module,
        batch: tuple[Float[Tensor, "batch channels height width"], Int64[Tensor, " batch"], int],
    ) -> dict[str, Tensor]:
        images, labels, number = batch
        frozen = self.frozen is not None and number < self.frozen_batches
        with _held(network.get_submodule(self.frozen or "")) if frozen else nullcontext():
            logits = network(images)
        if logits.ndim != 2 or logits.shape[1] < self.classes:
            raise ValueError(
                f"network must give logits [{len(images)}, {self.classes or 'classes'}], got {list(logits.shape)}"
            )
        return {"loss": F.cross_entropy(logits, labels), "accuracy": (logits.argmax(1) == labels).float().mean()}


@contextmanager
def _held(module: nn.Module) -> Iterator[None]:
    """Within, `module` is in evaluation mode and its parameters are constants.

    They get no gradient at all then, and an optimiser passes over a parameter without one: no decay, no momentum.
    """
    modes = [(part, part.training) for part in module.modules()]
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    module.eval()
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
        for part, mode in modes:
            part.training = mode


def _check_frozen(network: nn.Module, frozen: str) -> None:
    names = [name for name, _ in network.named_modules() if name]
    if frozen not in names:
        children = ", ".join(name for name, _ in network.named_children())
        raise ValueError(f"frozen: {type(network).__name__} has no submodule {frozen!r}; it has {children}")
    inside = {id(parameter) for parameter in network.get_submodule(frozen).parameters()}
    if all(id(parameter) in inside for parameter in network.parameters() if parameter.requires_grad):
        raise ValueError(f"frozen: nothing outside of {frozen!r} is left to train")
