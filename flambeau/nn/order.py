"""Generation orders: in which groups the cells of a grid are produced."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Order:
    """A partition of cells 0..N-1 into groups produced one after the other; a group is produced in parallel.

    Cells are numbered in raster order whatever the order they are produced in. It stands for the factorisation
    p(x) = product over groups s of p(x[group s] | x[groups before s]) of arXiv 2411.05902.

    groups: one long tensor of cells per step. grid: sizes of the axes the cells lie on.
    Raises ValueError when the groups are not a partition of the grid's cells.
    """

    groups: tuple[Tensor, ...]
    grid: tuple[int, ...]

    def __post_init__(self) -> None:
        cells = math.prod(self.grid)
        if not self.grid or min(self.grid) < 1:
            raise ValueError(f"grid needs axes of at least one cell, got {self.grid}")
        if any(group.numel() == 0 for group in self.groups):
            raise ValueError("groups must not be empty")
        produced = torch.cat(list(self.groups)) if self.groups else torch.empty(0, dtype=torch.long)
        if not torch.equal(produced.sort().values, torch.arange(cells)):
            outside = produced[(produced < 0) | (produced >= cells)].tolist()
            counts = torch.bincount(produced.clamp(0, cells - 1), minlength=cells)
            missing, repeated = ((counts == 0).nonzero()[:5, 0].tolist(), (counts > 1).nonzero()[:5, 0].tolist())
            raise ValueError(
                f"groups must name every cell 0..{cells - 1} once; outside: {outside[:5]}, "
                f"missing: {missing}, repeated: {repeated}"
            )

    @property
    def steps(self) -> int:
        """Number of groups."""
        return len(self.groups)

    @property
    def sequence(self) -> Int[Tensor, " cells"]:
        """Cells in the order they are produced."""
        return torch.cat(list(self.groups))

    @property
    def inverse(self) -> Int[Tensor, " cells"]:
        """Place of every cell in `sequence`: sequence[inverse] is 0..N-1."""
        return self.sequence.argsort()

    @property
    def step_of(self) -> Int[Tensor, " cells"]:
        """Group number of every cell."""
        sizes = torch.tensor([group.numel() for group in self.groups])
        return torch.arange(self.steps).repeat_interleave(sizes)[self.inverse]

    @property
    def coordinates(self) -> Int[Tensor, "cells axes"]:
        """Grid coordinates of cells 0..N-1."""
        return torch.cartesian_prod(*(torch.arange(size) for size in self.grid)).reshape(-1, len(self.grid))

    @property
    def is_raster(self) -> bool:
        """One cell at a time, in raster order."""
        cells = math.prod(self.grid)
        return self.steps == cells and torch.equal(self.sequence, torch.arange(cells))

    def mask(self, stream: Literal["content", "query"] = "content") -> Bool[Tensor, "cells cells"]:
        """What a cell (first axis) may attend to: its own and earlier groups; as a query, earlier groups and itself."""
        step = self.step_of
        if stream == "content":
            return step[:, None] >= step
        if stream == "query":
            return (step[:, None] > step) | torch.eye(step.numel(), dtype=torch.bool)
        raise ValueError(f"stream must be 'content' or 'query', got {stream!r}")


def raster(grid: Sequence[int]) -> Order:
    """Row by row, one cell at a time."""
    return Order(tuple(torch.arange(math.prod(grid)).split(1)), tuple(grid))


def snake(grid: tuple[int, int]) -> Order:
    """Row by row, every other row backwards, so that neighbours in time are neighbours in space."""
    cells = torch.arange(math.prod(grid)).view(*grid)
    cells[1::2] = cells[1::2].flip(1)
    return Order(tuple(cells.flatten().split(1)), tuple(grid))


def diagonal(grid: Sequence[int], origin: Sequence[int] | None = None) -> Order:
    """Cells of equal Manhattan distance from `origin` (default: the first corner) together (arXiv 2503.10696)."""
    origin = (0,) * len(grid) if origin is None else tuple(origin)
    if len(origin) != len(grid) or any(not 0 <= o < size for o, size in zip(origin, grid)):
        raise ValueError(f"origin must be a cell of grid {tuple(grid)}, got {origin}")
    cells = raster(grid).coordinates
    distance = (cells - torch.tensor(origin)).abs().sum(1)
    return Order(tuple((distance == d).nonzero()[:, 0] for d in range(int(distance.max()) + 1)), tuple(grid))


def random_order(grid: Sequence[int], seed: int, steps: int | None = None) -> Order:
    """Cells shuffled by `seed`, produced in `steps` nearly equal groups (default: one at a time)."""
    cells = math.prod(grid)
    steps = cells if steps is None else steps
    if not 1 <= steps <= cells:
        raise ValueError(f"steps must lie in 1..{cells}, got {steps}")
    shuffled = torch.randperm(cells, generator=torch.Generator().manual_seed(seed))
    return Order(tuple(shuffled.tensor_split(steps)), tuple(grid))


def custom(groups: Sequence[Sequence[int] | Tensor], grid: Sequence[int]) -> Order:
    """Any partition of the grid's cells, given as one list of cells per step."""
    return Order(tuple(torch.as_tensor(group, dtype=torch.long) for group in groups), tuple(grid))
