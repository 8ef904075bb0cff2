"""Augmentation that is a function of the sample, so that a teacher's stored outputs belong to what the student sees."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from flambeau.data.seeding import derive_generator


class PerSample:
    """A random transform of images, drawn from (`augment_seed`, sample) alone: for ``Batches(transform=...)``.

    A sample looks the same in every epoch, so a teacher's outputs can be stored, and teacher and student see the same
    augmented image (consistent teaching, Beyer et al. 2022, arXiv 2106.05237). For several versions of each image,
    repeat the images and number the copies.

    Args:
        transform: ``transform(images [1, C, H, W], generator) -> images``; it draws from the generator alone.
        augment_seed: another seed gives other versions, and another cache.
        images: position (of a tuple) or name (of a dict) of the images in the batch.
        indices: position or name of the samples' numbers, int64 [B].

    Raises:
        ValueError: numbers that are not int64 [B].
    """

    def __init__(
        self,
        transform: Callable[[Tensor, torch.Generator], Tensor],
        augment_seed: int,
        *,
        images: Any = 0,
        indices: Any = -1,
    ):
        self.transform, self.augment_seed, self.images, self.indices = transform, augment_seed, images, indices

    def __call__(self, batch: Any, generator: torch.Generator) -> Any:
        numbers, images = batch[self.indices], batch[self.images]
        if numbers.dtype != torch.int64 or numbers.shape != images.shape[:1]:
            raise ValueError(
                f"indices: expected int64 [{len(images)}], one for each image, got {numbers.dtype} "
                f"{list(numbers.shape)}; put torch.arange(len(images)) among the arrays of Batches"
            )
        seeds = (derive_generator(self.augment_seed, "augment", number) for number in numbers.tolist())
        changed = torch.cat([self.transform(image[None], seed) for image, seed in zip(images, seeds)])
        items = dict(batch) if isinstance(batch, dict) else list(batch)
        items[self.images] = changed  # type: ignore[index]
        return tuple(items) if isinstance(items, list) else items
