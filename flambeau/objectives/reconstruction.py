"""Images as patches, and reconstruction losses that count hidden pixels only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def patchify(
    x: Float[Tensor, "batch channels *size"], patch: int | Sequence[int]
) -> Float[Tensor, "batch patches values"]:
    """Cut images or volumes into patches, in raster order; a patch's values are ordered channel, row, column.

    patch: side, or one a spatial axis, in pixels.

    Raises:
        ValueError: no spatial axis, or one that the patches do not divide.
    """
    sides, grid = _grid(x.shape[2:], patch)
    axes = len(grid)
    pairs = [extent for pair in zip(grid, sides) for extent in pair]
    apart = x.reshape(*x.shape[:2], *pairs)  # batch, channels, then cells and pixels of each axis in turn
    cells, pixels = [2 + 2 * axis for axis in range(axes)], [3 + 2 * axis for axis in range(axes)]
    return apart.permute(0, *cells, 1, *pixels).flatten(1, axes).flatten(2)


def unpatchify(
    patches: Float[Tensor, "batch patches values"], patch: int | Sequence[int], size: Sequence[int]
) -> Float[Tensor, "batch channels *size"]:
    """Put patches together; the inverse of `patchify`. size: height and width (and depth) of the whole in pixels.

    Raises:
        ValueError: another number of patches or of values than `size` and `patch` ask for.
    """
    sides, grid = _grid(size, patch)
    if patches.ndim != 3 or patches.shape[1] != math.prod(grid) or patches.shape[2] % math.prod(sides):
        raise ValueError(
            f"patches must be [batch, {math.prod(grid)}, channels x {math.prod(sides)}], got {list(patches.shape)}"
        )
    axes = len(grid)
    apart = patches.unflatten(1, grid).unflatten(-1, (-1, *sides))  # batch, cells, channels, pixels
    order = [axis for number in range(axes) for axis in (1 + number, 2 + axes + number)]
    return apart.permute(0, 1 + axes, *order).reshape(len(patches), -1, *size)


def normalise_patches(
    patches: Float[Tensor, "batch patches values"], eps: float = 1e-6
) -> Float[Tensor, "batch patches values"]:
    """Each patch with mean 0 and variance 1: the target of MAE (He et al. 2022, arXiv 2111.06377, section 4.1).

    The variance is the unbiased one; a constant patch becomes 0. Raises ValueError for patches of a single value.
    """
    if patches.shape[-1] < 2:
        raise ValueError("patches of a single value have no variance")
    variance, mean = torch.var_mean(patches, -1, keepdim=True)
    return (patches - mean) / (variance + eps).sqrt()


def masked_error(
    prediction: Float[Tensor, batch * shape],
    target: Float[Tensor, batch * shape],
    mask: Bool[Tensor, batch * mask_shape],
    kind: Literal["l1", "l2"] = "l1",
) -> Float[Tensor, ""]:
    """Mean absolute or squared error where `mask` is True: the gradient is 0 elsewhere, the scale that of one value.

    mask: of a shape that broadcasts to the prediction's: [batch, 1, height, width] for images, [batch, patches, 1] for
    patches.

    Raises:
        ValueError: different shapes, a mask that hides nothing, or another kind.
    """
    if prediction.shape != target.shape:
        raise ValueError(f"prediction and target differ in shape: {list(prediction.shape)} and {list(target.shape)}")
    if mask.ndim != target.ndim or any(a not in (1, b) for a, b in zip(mask.shape, target.shape)):
        raise ValueError(f"mask must broadcast to {list(target.shape)}, got {list(mask.shape)}")
    if kind not in ("l1", "l2"):
        raise ValueError(f"kind must be l1 or l2, got {kind!r}")
    if not mask.any():
        raise ValueError("mask hides nothing, so there is no error to measure")
    weight = mask.expand_as(target)
    error = (prediction - target).float()
    error = error.abs() if kind == "l1" else error.square()
    return torch.where(weight, error, 0).sum() / weight.sum()


def _grid(size: Sequence[int], patch: int | Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    sides = (patch,) * len(size) if isinstance(patch, int) else tuple(patch)
    if not size or len(sides) != len(size) or min(sides) < 1 or any(n % side for n, side in zip(size, sides)):
        raise ValueError(f"an image of {' x '.join(map(str, size))} pixels cannot be cut into patches of {patch}")
    return sides, tuple(n // side for n, side in zip(size, sides))
