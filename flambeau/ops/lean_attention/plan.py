"""How decode attention is split: LeanTiles, work units as equal tile ranges, and the segments they meet in.

Sanovar et al., "Lean Attention" (2024), section 4: the tiles of all heads and sequences are laid end to end and cut
into equal ranges (stream-K), wherever the cuts fall. An *output tile* is one (row of the batch, key/value head); a
*segment* is what one unit computes of one output tile; one that is not the whole output tile is *partial*.
"""

import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

# A unit of fewer tiles costs more to start and to combine than it saves (the paper's short contexts).
LEAST_TILES = 2


@dataclass(frozen=True)
class Segment:
    """Tiles ``first`` to ``last`` - 1 (counted within output tile ``output``), computed by work unit ``unit``."""

    unit: int
    output: int
    first: int
    last: int
    partial: bool

    @property
    def slot(self) -> int:
        """Where a partial result waits: a unit has one slot for a tile it continues and one for a tile it begins."""
        return 2 * self.unit + (self.first == 0)


@dataclass(frozen=True)
class LeanPlan:
    """The schedule of one call, computed from the lengths alone, as the kernels compute it.

    Args:
        lengths: keys each row of the batch attends to; 0 is allowed.
        kv_heads: key/value heads; every row has so many output tiles.
        tile: keys of one LeanTile.
        workers: units among which ``"lean"`` divides the tiles; lowered to the number of tiles.
        schedule: ``"lean"`` (equal ranges), ``"split(n)"`` (n equal pieces of every output tile, FlashDecoding) or
            ``"per_head"`` (one unit an output tile, FlashAttention-2).

    Raises:
        ValueError: a negative length, a size below 1 or an unknown schedule.
    """

    lengths: Sequence[int]
    kv_heads: int = 1
    tile: int = 256
    workers: int = 1
    schedule: str = "lean"

    def __post_init__(self) -> None:
        for name in ("kv_heads", "tile", "workers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1")
        if any(length < 0 for length in self.lengths):
            raise ValueError(f"lengths are {list(self.lengths)}; expected none below 0")
        pieces(self.schedule)

    @cached_property
    def tiles(self) -> tuple[int, ...]:
        """LeanTiles of every output tile, row by row, head by head."""
        return tuple(-(-length // self.tile) for length in self.lengths for _ in range(self.kv_heads))

    @cached_property
    def prefix(self) -> tuple[int, ...]:
        """Number of the first tile of every output tile, and the total."""
        return tuple(accumulate(self.tiles, initial=0))

    @cached_property
    def ranges(self) -> tuple[tuple[int, int], ...]:
        """Tiles [low, high) of every work unit."""
        total, split = self.prefix[-1], pieces(self.schedule)
        if split == 0:
            units = min(self.workers, total)
            return tuple((u * total // units, (u + 1) * total // units) for u in range(units))
        ranges = []
        for start, tiles in zip(self.prefix, self.tiles):
            used = min(split, tiles)
            ranges += [(start + i * tiles // used, start + (i + 1) * tiles // used) for i in range(used)]
            ranges += [(start, start)] * (split - used)
        return tuple(ranges)

    @cached_property
    def segments(self) -> tuple[Segment, ...]:
        """What the units compute, in the order of units and tiles."""
        found = []
        for unit, (low, high) in enumerate(self.ranges):
            while low < high:
                output = bisect_right(self.prefix, low) - 1
                start, stop = self.prefix[output], self.prefix[output + 1]
                end = min(high, stop)
                found.append(Segment(unit, output, low - start, end - start, (low, end) != (start, stop)))
                low = end
        return tuple(found)

    @property
    def partials(self) -> int:
        """Segments that are stored and combined."""
        return sum(segment.partial for segment in self.segments)

    @cached_property
    def arrivals(self) -> tuple[int, ...]:
        """Segments of every output tile: what its arrival counter reaches."""
        counts = [0] * len(self.tiles)
        for segment in self.segments:
            counts[segment.output] += 1
        return tuple(counts)

    def keys(self, segment: Segment) -> range:
        """Keys of a segment, counted from the first key its row attends to."""
        length = self.lengths[segment.output // self.kv_heads]
        return range(segment.first * self.tile, min(segment.last * self.tile, length))


def pieces(schedule: str) -> int:
    """0 for ``"lean"``, otherwise into how many pieces every output tile is cut.

    Raises:
        ValueError: the schedule is unknown.
    """
    if schedule in ("lean", "per_head"):
        return int(schedule == "per_head")
    match = re.fullmatch(r"split\((\d+)\)", schedule) if isinstance(schedule, str) else None
    if match is None or not 1 <= int(match[1]) <= 4096:
        raise ValueError(f"schedule is {schedule!r}; expected auto, lean, per_head or split(n) with n from 1 to 4096")
    return int(match[1])


def choose_schedule(lengths: Sequence[int], kv_heads: int, workers: int) -> str:
    """``"per_head"`` when there are at least 4 output tiles a worker and all have about the same length.

    Then every unit is busy anyway and nothing has to be combined; otherwise ``"lean"``.
    """
    many = len(lengths) * kv_heads >= 4 * workers
    even = len(lengths) * kv_heads % workers == 0 or len(lengths) * kv_heads >= 16 * workers
    balanced = bool(lengths) and max(lengths) * len(lengths) <= 1.1 * sum(lengths)
    return "per_head" if many and even and balanced else "lean"


def default_workers(tiles: int, most: int) -> int:
    """Units worth starting for so many tiles in total: fewer than ``most`` for short contexts."""
    return max(1, min(most, tiles // LEAST_TILES))


def default_tile(dim: int) -> int:
    """Keys of a LeanTile for a head size: the paper's 256 at 64 and 128 at 128, so that a tile has as many bytes."""
    return 256 if dim <= 64 else 128 if dim <= 128 else 64
