"""What the augmentations ask of their input, and the shares they draw."""

from __future__ import annotations

import torch
from jaxtyping import Int64
from torch import Tensor


def check_images(images: Tensor) -> None:
    """Raises TypeError for integers and ValueError for another shape than [B, C, H, W]."""
    if not isinstance(images, Tensor) or not images.is_floating_point():
        got = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise TypeError(f"images must be a float tensor in [0, 1], got {got}")
    if images.ndim != 4 or 0 in images.shape:
        raise ValueError(f"images must have shape [B, C, H, W], got {list(images.shape)}")


def check_range(name: str, bounds: tuple[float, float]) -> None:
    """Raises ValueError unless `bounds` are two positive numbers in order."""
    if len(bounds) != 2 or not 0 < bounds[0] <= bounds[1]:
        raise ValueError(f"{name} must be two positive numbers in order, got {bounds}")


def check_share(p: float) -> None:
    """Raises ValueError unless `p` is a probability."""
    if not 0 <= p <= 1:
        raise ValueError(f"p must lie in [0, 1], got {p}")


def draw_rows(batch: int, p: float, generator: torch.Generator | None) -> Int64[Tensor, " chosen"]:
    """Rows of a batch, each taken with probability `p`; on the CPU."""
    return (torch.rand(batch, generator=generator) < p).nonzero().flatten()


def draw_uniform(low: float, high: float, count: int, generator: torch.Generator | None) -> Tensor:
    """`count` uniform numbers in [low, high); on the CPU."""
    return low + (high - low) * torch.rand(count, generator=generator)
