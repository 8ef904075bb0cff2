"""Which tokens of a sequence each rank holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Int64
from torch import Tensor

Balance = Literal["none", "zigzag"]


def split_positions(length: int, ranks: int, balance: Balance = "none") -> Int64[Tensor, "ranks chunk"]:
    """Positions of the tokens that each rank holds; those from `length` on are padding.

    "none" gives rank r the r-th of `ranks` equal parts. "zigzag" cuts 2 * ranks parts and gives rank r the parts r and
    2 * ranks - 1 - r, so that every rank has the same number of visible pairs under a causal mask, where equal parts
    differ by (2 ranks - 1) : 1.

    Raises ValueError for a length or a number of ranks below 1, or another balance.
    """
    if length < 1 or ranks < 1:
        raise ValueError(f"length and ranks must be at least 1, got {length} and {ranks}")
    if balance not in ("none", "zigzag"):
        raise ValueError(f"balance must be 'none' or 'zigzag', got {balance!r}")
    parts = ranks if balance == "none" else 2 * ranks
    positions = torch.arange(-(-length // parts) * parts).view(parts, -1)
    if balance == "none":
        return positions
    return torch.cat([positions[:ranks], positions[ranks:].flip(0)], dim=1)


@dataclass(frozen=True)
class SequenceLayout:
    """Positions, in the whole sequence, of the queries and of the keys on each rank. Same on all ranks."""

    queries: Int64[Tensor, "ranks query_chunk"]
    keys: Int64[Tensor, "ranks key_chunk"]

    @classmethod
    def split(cls, length: int, ranks: int, balance: Balance = "none") -> SequenceLayout:
        """That of self-attention over `length` tokens, see `split_positions`."""
        positions = split_positions(length, ranks, balance)
        return cls(positions, positions)

    def merged(self, size: int) -> SequenceLayout:
        """That of groups of `size` neighbouring ranks, each seen as one."""
        return SequenceLayout(
            self.queries.reshape(len(self.queries) // size, -1), self.keys.reshape(len(self.keys) // size, -1)
        )
