"""Fixed positions of a grid: sines and cosines of rows and columns."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def sin_cos_positions(grid: tuple[int, int], width: int, base: float = 10000.0) -> Float[Tensor, "cells width"]:
    """One vector a cell in raster order: half of it says the row, half the column (MoCo v3, arXiv 2104.02057).

    Sines, then cosines, of the number times ``base^(-4 k / width)``; a smaller `base` suits a small grid.

    Raises:
        ValueError: a width that is no multiple of 4, or an empty grid.
    """
    if width % 4 or width < 4 or min(grid) < 1:
        raise ValueError(f"width must be a multiple of 4 and the grid not empty, got {width} and {grid}")
    rates = base ** (-torch.arange(width // 4) * 4 / width)
    rows, columns = (torch.arange(count)[:, None] * rates for count in grid)
    row, column = (torch.cat([angles.sin(), angles.cos()], 1) for angles in (rows, columns))
    return torch.cat(
        [row[:, None].expand(-1, grid[1], -1), column[None].expand(grid[0], -1, -1)], 2
    ).flatten(0, 1)  # fmt: skip
