"""Random rotation, scaling and translation of image batches."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def random_affine(
    images: Float[Tensor, "batch channels height width"],
    degrees: float = 10.0,
    scale: float = 0.1,
    shift: float = 0.1,
    noise: float = 0.0,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "batch channels height width"]:
    """Rotate, scale and translate each image on its own, bilinearly, with 0 outside; then add Gaussian noise.

    Args:
        images: any value range; the result is clipped to [0, 1] if there is noise.
        degrees: largest rotation to either side.
        scale: largest relative change of the size.
        shift: largest translation in both directions, as a share of the image.
        noise: standard deviation.
        generator: on the CPU; the same state gives the same changes on every device. None draws from the global one.

    Raises:
        ValueError: not a batch of images, or a negative amount.
    """
    if images.ndim != 4:
        raise ValueError(f"images must have shape [B, C, H, W], got {list(images.shape)}")
    if min(degrees, scale, shift, noise) < 0 or scale >= 1:
        raise ValueError(
            f"degrees, scale, shift and noise must not be negative and scale below 1, got {degrees}, {scale}, {shift}, "
            f"{noise}"
        )
    draws = torch.rand(4, len(images), generator=generator) * 2 - 1
    angle, size = draws[0] * math.radians(degrees), 1 + draws[1] * scale
    cos, sin = angle.cos() / size, angle.sin() / size
    theta = torch.stack([cos, -sin, 2 * shift * draws[2], sin, cos, 2 * shift * draws[3]], 1).view(-1, 2, 3)
    grid = F.affine_grid(theta.to(images), list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, align_corners=False)
    if not noise:
        return moved
    return (moved + noise * torch.randn(images.shape, generator=generator).to(images)).clamp_(0, 1)
