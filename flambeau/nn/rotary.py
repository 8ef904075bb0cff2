"""Rotary position embedding over coordinates of any number of axes."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


class Rotary(nn.Module):
    """Rotary angles for tokens that sit at points of a line, a grid or a volume.

    The frequencies of a head are split evenly over the coordinate axes (Su et al. 2021, arXiv 2104.09864; the
    2-D split is the one of LlamaGen, arXiv 2406.06525). A token at the origin is not rotated.

    head_dim: size of one head; divisible by twice the number of axes.
    coordinates: [length, axes], the point of every sequence position.
    base: longest wavelength divided by 2 pi.
    Raises ValueError when head_dim does not divide.
    """

    def __init__(self, head_dim: int, coordinates: Float[Tensor, "length axes"], base: float = 10000.0):
        super().__init__()
        axes = coordinates.shape[1]
        if head_dim % (2 * axes):
            raise ValueError(f"head_dim must be divisible by {2 * axes} for {axes} axes, got {head_dim}")
        per_axis = head_dim // (2 * axes)
        frequencies = base ** (-torch.arange(per_axis, dtype=torch.float64) / per_axis)
        angles = (coordinates.double()[:, :, None] * frequencies).flatten(1)
        # The sine carries the sign of the half it multiplies, so that rotating needs one roll and no negation.
        table = torch.stack([torch.cat([angles.cos()] * 2, 1), torch.cat([-angles.sin(), angles.sin()], 1)], 1)
        self.register_buffer("table", table.to(torch.get_default_dtype()), persistent=False)

    def forward(self, positions: Int[Tensor, "batch time"]) -> Float[Tensor, "batch 2 time head_dim"]:
        """Cosine and signed sine for `rotate`, at these sequence positions."""
        return self.table[positions].transpose(1, 2)


def rotate(
    x: Float[Tensor, "batch heads time head_dim"], angles: Float[Tensor, "batch 2 time head_dim"]
) -> Float[Tensor, "batch heads time head_dim"]:
    """Rotate queries or keys by the angles of `Rotary`."""
    return torch.addcmul(x * angles[:, :1], x.roll(x.shape[-1] // 2, -1), angles[:, 1:])


def line_coordinates(length: int) -> Float[Tensor, "length 1"]:
    """Coordinates 0..length-1 on a line."""
    return torch.arange(length, dtype=torch.float64)[:, None]


def grid_coordinates(grid: tuple[int, ...], prefix: int = 0) -> Float[Tensor, "length axes"]:
    """Raster-ordered cell coordinates of a grid, behind `prefix` tokens that all sit at the origin."""
    cells = torch.cartesian_prod(*(torch.arange(size, dtype=torch.float64) for size in grid)).reshape(-1, len(grid))
    return torch.cat([cells.new_zeros(prefix, len(grid)), cells])
