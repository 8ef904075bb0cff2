"""Digits at 16x16 pixels, a fixed number of disturbed versions of each: a small task for transfer between networks."""

from __future__ import annotations

from typing import Literal

import torch

from flambeau.data.augment.affine import random_affine
from flambeau.data.images.image_set import ImageSet, digits
from flambeau.data.seeding import derive_generator
from flambeau.data.subsets import per_class

TRAIN, TEST = 1000, 797
UNLABELLED = -100  # the label that cross-entropies leave out


def augmented_digits(
    part: Literal["train", "test"] = "train",
    views: int = 4,
    labelled: int | None = None,
    unlabelled: bool = True,
    seed: int = 0,
) -> ImageSet:
    """1000 digits to train on, each `views` times, or the 797 others as they are.

    The versions are rotated by up to 15 degrees, scaled by up to 15 %, moved by up to 10 % and covered with Gaussian
    noise of standard deviation 0.1; they depend on the seed alone, so a sample is the same in every epoch.

    Args:
        part: "train" or "test".
        views: versions of each training digit.
        labelled: digits of each class that keep their label; the label of the others is -100. None keeps all.
        unlabelled: keep the digits without a label.
        seed: which split, which versions, which digits are labelled.

    Raises:
        ValueError: another part, `views` below 1, or more labelled digits than a class has.
    """
    if part not in ("train", "test"):
        raise ValueError(f"part must be 'train' or 'test', got {part!r}")
    if views < 1:
        raise ValueError(f"views must be at least 1, got {views}")
    train, test = digits(16).split((TRAIN / (TRAIN + TEST), TEST / (TRAIN + TEST)), seed)
    if part == "test":
        return test
    assert train.labels is not None
    labels = train.labels
    if labelled is not None:
        kept = per_class(labels, labelled, seed)
        labels = torch.full_like(labels, UNLABELLED).index_copy_(0, kept, labels[kept])
    noise = derive_generator(seed, "augmented digits")
    images = [random_affine(train.images, 15, 0.15, 0.1, 0.1, generator=noise) for _ in range(views)]
    pool, repeated = torch.cat(images), labels.repeat(views)
    if labelled is None:
        return ImageSet(pool, repeated, train.classes)
    rows = torch.arange(len(pool)) if unlabelled else (repeated != UNLABELLED).nonzero().flatten()
    return ImageSet(pool[rows], repeated[rows])
