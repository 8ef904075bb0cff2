"""Batches in which each image stands in its four rotations."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor


def collate_rotations(
    items: Sequence[tuple[Tensor, int | Tensor]],
) -> tuple[Float[Tensor, "versions channels size size"], Int64[Tensor, " batch"]]:
    """Each image and then its rotations by 90, 180 and 270 degrees, image after image, with one label for the four.

    A ``collate_fn`` for the batches of self-supervised distillation (Xu et al. 2020, arXiv 2006.07114, section 3.2).

    Raises:
        ValueError: an image that is not square.
    """
    images = torch.stack([image for image, _ in items])
    if images.shape[-1] != images.shape[-2]:
        raise ValueError(f"items: images must be square to be rotated, got {list(images.shape[1:])}")
    versions = torch.stack([images.rot90(turns, (-2, -1)) for turns in range(4)], 1)
    return versions.flatten(0, 1), torch.tensor([int(label) for _, label in items])
