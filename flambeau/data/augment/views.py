"""Augmentations one after another, and several views of one batch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

Augmentation = Callable[[Tensor, torch.Generator | None], Tensor]


class Compose:
    """The steps one after another. Raises TypeError for a step that cannot be called."""

    def __init__(self, *steps: Augmentation):
        self.steps = _callables("steps", steps)

    def __call__(
        self, images: Float[Tensor, "batch channels height width"], generator: torch.Generator | None = None
    ) -> Float[Tensor, "batch channels height2 width2"]:
        for step in self.steps:
            images = step(images, generator)
        return images

    def __repr__(self) -> str:
        return f"Compose({', '.join(map(repr, self.steps))})"


class Views:
    """Several augmented versions of one batch, one for each pipeline; every pipeline starts from the batch itself.

    The same pipeline twice gives two different views. Pipelines of other sizes make multi-crop (SwAV, arXiv
    2006.09882, section 3.2): ``Views(*[large] * 2, *[small] * 4)``.

    Raises:
        ValueError: no pipeline.
        TypeError: one that cannot be called.
    """

    def __init__(self, *pipelines: Augmentation):
        if not pipelines:
            raise ValueError("pipelines: at least one is needed")
        self.pipelines = _callables("pipelines", pipelines)

    def __call__(
        self, images: Float[Tensor, "batch channels height width"], generator: torch.Generator | None = None
    ) -> list[Tensor]:
        """A list of batches [B, C, H, W], one for each pipeline, each of its pipeline's size."""
        return [pipeline(images, generator) for pipeline in self.pipelines]

    def __repr__(self) -> str:
        return f"Views({', '.join(map(repr, self.pipelines))})"


def _callables(name: str, parts: tuple[Augmentation, ...]) -> tuple[Augmentation, ...]:
    for position, part in enumerate(parts):
        if not callable(part):
            raise TypeError(f"{name}[{position}] must be callable, got {type(part).__name__}")
    return parts
