"""One attention over a ring, and its arithmetic on a tile of queries and keys."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from flambeau.nn.ring.layout import SequenceLayout
from flambeau.nn.ring.route import Route
from flambeau.nn.ring.transport import Transport
from flambeau.nn.ring.visibility import Visibility

TILE_ELEMENTS = 2**22  # scores that exist at a time, over batch and heads


@dataclass(frozen=True)
class Problem:
    """What a rank knows about an attention besides queries, keys and values.

    Inside, heads that share keys and values are an axis of their own: queries are [batch, kv_heads, shared, chunk,
    head_dim]. bias: [batch, kv_heads, shared, chunk, length], columns in the order of positions, added to the scores;
    as booleans, True where a query may look. key_masks: one a rank, [batch, chunk]. seed: of the dropout masks, which
    are drawn again in the backward pass from (seed, rank, owner, tile).
    """

    transport: Transport
    route: Route
    layout: SequenceLayout
    visibility: Visibility
    scale: float
    dropout: float = 0.0
    seed: int = 0
    bias: Tensor | None = None
    key_masks: list[Bool[Tensor, "batch chunk"]] | None = None

    def holders(self) -> list[int]:
        """Whose chunk this rank holds before each hop and after the last."""
        return [held[self.transport.rank] for held in self.route.holders]

    def tiles(self, owner: int, queries: Tensor, whole: bool = False) -> Iterator[Tile]:
        """The tiles of this rank's queries and the keys of `owner` in which some pair is visible."""
        q_positions, k_positions = self.layout.queries[self.transport.rank], self.layout.keys[owner]
        size = max(64, math.isqrt(TILE_ELEMENTS // max(1, math.prod(queries.shape[:3]))))
        if whole:
            row_pieces, column_pieces = [slice(0, len(q_positions))], [slice(0, len(k_positions))]
        else:
            row_pieces, column_pieces = pieces(q_positions, size), pieces(k_positions, size)
        for rows in row_pieces:
            for columns in column_pieces:
                visible = self.visibility.pairs(q_positions[rows], k_positions[columns], queries.device)
                if visible is False:
                    continue
                hidden = None if visible is True else ~visible
                if self.key_masks is not None:
                    masked = ~self.key_masks[owner][:, None, None, None, columns]
                    hidden = masked if hidden is None else hidden | masked
                bias = None
                if self.bias is not None:
                    bias = self.bias[..., rows, :].index_select(-1, k_positions[columns].to(self.bias.device))
                    if bias.dtype == torch.bool:
                        hidden, bias = ~bias if hidden is None else hidden | ~bias, None
                yield Tile(self, owner, rows, columns, hidden, bias)


@dataclass(frozen=True)
class Tile:
    """Some queries and some keys. hidden: pairs that must not see each other."""

    problem: Problem
    owner: int
    rows: slice
    columns: slice
    hidden: Tensor | None
    bias: Tensor | None

    def scores(
        self, queries: Float[Tensor, "b h g q d"], keys: Float[Tensor, "b h k d"]
    ) -> Float[Tensor, "b h g tile_q tile_k"]:
        """Scaled scores of the tile; minus infinity where a pair is hidden."""
        scores = products(queries[..., self.rows, :], keys[:, :, self.columns]) * self.problem.scale
        if self.bias is not None:
            scores = scores + self.bias
        return scores if self.hidden is None else scores.masked_fill_(self.hidden, -math.inf)

    def keep(self, like: Tensor) -> Tensor | None:
        """What the tile's probabilities are multiplied by for dropout: 0 or 1 / (1 - p); None without dropout."""
        p = self.problem.dropout
        if p == 0:
            return None
        place = (self.problem.seed, self.problem.transport.rank, self.owner, self.rows.start, self.columns.start)
        digest = hashlib.blake2b(repr(place).encode(), digest_size=8).digest()
        generator = torch.Generator(like.device).manual_seed(int.from_bytes(digest, "big") >> 1)
        kept = torch.rand(like.shape, generator=generator, device=like.device) >= p
        return kept.to(like.dtype) / (1 - p)


def pieces(positions: Tensor, size: int) -> list[slice]:
    """Slices of up to `size` tokens that do not reach over a gap in the positions.

    The early and the late part that a rank has under zigzag are told apart, as the future hides one of them only.
    """
    gaps = ((positions.diff() != 1).nonzero().flatten() + 1).tolist()
    edges = [0, *(gaps if len(gaps) < 8 else []), len(positions)]  # tokens in no order at all are not torn apart
    return [
        slice(start, min(start + size, end))
        for begin, end in zip(edges, edges[1:], strict=False)
        for start in range(begin, end, size)
    ]


def products(queries: Float[Tensor, "b h g q d"], others: Float[Tensor, "b h k d"]) -> Float[Tensor, "b h g q k"]:
    """Inner products of every query with every other, the heads that share keys taken together."""
    return (queries.flatten(2, 3) @ others.mT).unflatten(2, queries.shape[2:4])


def weighted(weights: Float[Tensor, "b h g q k"], others: Float[Tensor, "b h k d"]) -> Float[Tensor, "b h g q d"]:
    """Sums of `others` for each query."""
    return (weights.flatten(2, 3) @ others).unflatten(2, weights.shape[2:4])


def gathered(weights: Float[Tensor, "b h g q k"], queries: Float[Tensor, "b h g q d"]) -> Float[Tensor, "b h k d"]:
    """Sums of `queries` for each key, over the heads that share it."""
    return weights.flatten(2, 3).mT @ queries.flatten(2, 3)


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """What scores and sums are computed in: float32 for 16-bit inputs, else the input's own."""
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype
