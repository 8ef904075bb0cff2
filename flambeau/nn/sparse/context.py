"""Which cells of the images are visible, as the layers of a sparse network learn it."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor


class ActiveCells:
    """The visible cells of a batch, at every resolution of a network.

    cells: [batch, *grid], True where visible; two or three spatial axes. features: what taps have recorded, by name.
    Raises ValueError for another shape or type, and for a batch without a visible cell.
    """

    def __init__(self, cells: Bool[Tensor, batch * grid]):
        if cells.dtype != torch.bool or cells.ndim not in (3, 4) or 0 in cells.shape:
            raise ValueError(
                f"mask must be boolean [batch, height, width] or [batch, depth, height, width] in cells, got "
                f"{cells.dtype} {list(cells.shape)}"
            )
        self.cells = cells
        self.grid = tuple(cells.shape[1:])
        self.chosen: Int64[Tensor, "visible axes"] = cells.nonzero()
        if not len(self.chosen):
            raise ValueError(f"mask hides all {cells.numel()} cells of the batch")
        self.share = len(self.chosen) / cells.numel()
        self.features: dict[str, Tensor] = {}
        self.inside = False  # whether a network is running that has hidden its input
        self._visible: dict[tuple[int, ...], Tensor] = {}
        self._factors: dict[tuple[tuple[int, ...], torch.dtype], Tensor] = {}
        self._positions: dict[tuple[int, ...], Tensor] = {}

    def pooled(self, size: Sequence[int]) -> bool:
        """Whether a map of `size` has no cells any more: one position for a whole image."""
        return max(size) == 1 and max(self.grid) > 1

    def cell(self, size: Sequence[int], layer: str = "the map") -> tuple[int, ...]:
        """Positions along each axis of one cell in a map of `size`.

        Raises:
            ValueError: the map does not consist of whole cells; the message names `layer`.
        """
        if len(size) != len(self.grid) or any(n % cells for n, cells in zip(size, self.grid)):
            raise ValueError(
                f"{layer}: a map of {' x '.join(map(str, size))} positions cannot be divided into "
                f"{' x '.join(map(str, self.grid))} cells"
            )
        return tuple(n // cells for n, cells in zip(size, self.grid))

    def visible(self, size: Sequence[int], layer: str = "the map") -> Bool[Tensor, "batch 1 *size"]:
        """True at the positions of a map of `size` that lie in visible cells."""
        key = tuple(size)
        if key not in self._visible:
            mask = self.cells[:, None]
            for axis, repeats in enumerate(self.cell(size, layer)):
                mask = mask.repeat_interleave(repeats, axis + 2)
            self._visible[key] = mask
        return self._visible[key]

    def factors(
        self, size: Sequence[int], dtype: torch.dtype, layer: str = "the map"
    ) -> Float[Tensor, "batch 1 *size"]:
        """1 at visible positions and 0 at hidden ones."""
        key = (tuple(size), dtype)
        if key not in self._factors:
            self._factors[key] = self.visible(size, layer).to(dtype)
        return self._factors[key]

    def positions(self, size: Sequence[int], layer: str = "the map") -> Int64[Tensor, " active"]:
        """Indices of the visible positions among all of [batch, *size], one sample after the other."""
        key = tuple(size)
        if key not in self._positions:
            cell = self.cell(size, layer)
            # From the cells rather than from the large mask, whose search would wait for an accelerator each time.
            sample, *corner = self.chosen.view(len(self.chosen), -1, *[1] * len(size)).unbind(1)
            within = torch.meshgrid(*[torch.arange(side, device=sample.device) for side in cell], indexing="ij")
            index = sample
            for n, side, start, offset in zip(size, cell, corner, within):
                index = index * n + start * side + offset
            self._positions[key] = index.flatten()
        return self._positions[key]

    def counts(self, size: Sequence[int], layer: str = "the map") -> list[int]:
        """Visible positions of each sample in a map of `size`."""
        positions = math.prod(self.cell(size, layer))
        return [cells * positions for cells in self._of_sample]

    @cached_property
    def _of_sample(self) -> list[int]:
        return self.cells.flatten(1).sum(1).tolist()  # an accelerator is waited for, so once a batch


class SparseContext:
    """Carries a mask to the layers of the network that was converted with it.

    ``with context(mask): network(x)`` runs `network` on the visible cells; outside, the same network is dense. Every
    thread has its own mask, and every network its own context, so replicas in threads and networks within networks do
    not see each other's. A copy of a network gets a context of its own. What is computed again in the backward pass
    (activation checkpointing) has to enter the context again.
    """

    def __init__(self) -> None:
        self._of_thread = threading.local()

    def __reduce__(self) -> tuple[type[SparseContext], tuple[()]]:
        return SparseContext, ()

    @property
    def active(self) -> ActiveCells | None:
        """The present mask of this thread; None where the network is dense."""
        return getattr(self._of_thread, "active", None)

    @contextmanager
    def __call__(self, mask: Bool[Tensor, batch * grid]) -> Iterator[ActiveCells]:
        """Hide all but the cells that are True in `mask`. Raises ValueError as `ActiveCells` does."""
        before, self._of_thread.active = self.active, ActiveCells(mask)
        try:
            yield self._of_thread.active
        finally:
            self._of_thread.active = before
