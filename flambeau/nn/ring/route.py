"""The way of the chunks: who sends to whom at each hop."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Route:
    """Hops that every rank makes together; at hop h rank r sends what it holds to ``hops[h][r]``.

    holders: after h hops, rank r holds the chunk of rank ``holders[h][r]``.
    """

    ranks: int
    hops: tuple[tuple[int, ...], ...]
    holders: tuple[tuple[int, ...], ...] = field(init=False)

    def __post_init__(self) -> None:
        holders = [tuple(range(self.ranks))]
        for hop in self.hops:
            held = [0] * self.ranks
            for sender, receiver in enumerate(hop):
                held[receiver] = holders[-1][sender]
            holders.append(tuple(held))
        object.__setattr__(self, "holders", tuple(holders))

    @property
    def home(self) -> tuple[int, ...]:
        """Where each rank sends what it holds in the end so that it arrives at its owner."""
        return self.holders[-1]

    @classmethod
    def ring(cls, ranks: int, distances: Collection[int] | None = None) -> Route:
        """Each rank sends to the next one, so that after h hops rank r holds the chunk of rank r - h.

        distances: values of (r - owner) mod ranks that somebody needs; all by default. A ring whose near ends suffice,
        as for a sliding window, makes fewer hops: some forwards, then one back over all of those, then some backwards.
        """
        needed = sorted(set(range(ranks)) & set(range(ranks) if distances is None else distances) | {0})
        # Leave out the longest run of distances that nobody needs.
        gaps = [(after - before, before) for before, after in zip(needed, [*needed[1:], ranks], strict=True)]
        _, forwards = max(gaps)
        backwards = ranks - min([d for d in needed if d > forwards], default=ranks)
        steps = [1] * forwards + ([-(forwards + 1)] + [-1] * (backwards - 1) if backwards else [])
        return cls(ranks, tuple(tuple((r + step) % ranks for r in range(ranks)) for step in steps))

    @classmethod
    def double_ring(cls, ranks: int, inner: int) -> Route:
        """Rings of `inner` neighbouring ranks (of one machine) inside a ring of such rings.

        A chunk visits all ranks of a machine before it takes the slow way to the next, which it does once for each
        machine but one. Raises ValueError if `inner` does not divide `ranks`.
        """
        if inner < 1 or ranks % inner:
            raise ValueError(f"inner must divide the {ranks} ranks of the ring, got {inner}")
        within = tuple(r - r % inner + (r + 1) % inner for r in range(ranks))
        across = tuple((r + inner) % ranks for r in range(ranks))
        return cls(ranks, tuple(within if hop % inner else across for hop in range(1, ranks)))
