"""The spatiotemporal index: one row a file (or pair of files, in a join), found by box and time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyproj
import shapely

from flambeau.data.geo.grid import Bounds


@dataclass(frozen=True, eq=False)
class Index:
    """Polygons in one CRS, closed intervals of time, and what each row stands for.

    geometry: array of polygons. start, stop: ``datetime64[us]`` arrays. rows: of equal length, the scenes or files.
    Never changed in place; every method returns another index.
    """

    crs: pyproj.CRS
    geometry: np.ndarray
    start: np.ndarray
    stop: np.ndarray
    rows: tuple[Any, ...]
    _tree: list[Any] = field(default_factory=list, repr=False)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def bounds(self) -> Bounds:
        """Box around all polygons."""
        left, bottom, right, top = shapely.total_bounds(self.geometry).tolist()
        return left, bottom, right, top

    @property
    def interval(self) -> tuple[np.datetime64, np.datetime64]:
        """From the first start to the last stop."""
        return self.start.min(), self.stop.max()

    @property
    def region(self) -> Any:
        """The union of all polygons."""
        return shapely.union_all(self.geometry)

    def query(self, bounds: Bounds, start: np.datetime64 | None, stop: np.datetime64 | None) -> np.ndarray:
        """Numbers of the rows that meet a box and an interval, ascending."""
        found = np.sort(self.tree.query(shapely.box(*bounds), predicate="intersects"))
        if start is not None:
            found = found[self.stop[found] >= start]
        if stop is not None:
            found = found[self.start[found] <= stop]
        return found

    @property
    def tree(self) -> shapely.STRtree:
        if not self._tree:
            self._tree.append(shapely.STRtree(self.geometry))
        return self._tree[0]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_tree": []}

    def take(self, numbers: Any) -> Index:
        """Some rows: by number or by a mask of booleans."""
        numbers = np.asarray(numbers)
        numbers = np.flatnonzero(numbers) if numbers.dtype == bool else numbers.astype(int)
        return replace(
            self,
            geometry=self.geometry[numbers],
            start=self.start[numbers],
            stop=self.stop[numbers],
            rows=tuple(self.rows[number] for number in numbers),
            _tree=[],
        )

    def between(self, start: np.datetime64 | None, stop: np.datetime64 | None) -> Index:
        """The rows that meet an interval, their own intervals cut to it."""
        begin = self.start if start is None else np.maximum(self.start, start)
        end = self.stop if stop is None else np.minimum(self.stop, stop)
        return replace(self, start=begin, stop=end, _tree=[]).take(begin <= end)

    def clip(self, region: Any) -> Index:
        """The rows that share area with a region, cut to it; a row that falls apart becomes several."""
        cut = shapely.intersection(self.geometry, region)
        parts, numbers = shapely.get_parts(cut, return_index=True)
        kept = shapely.area(parts) > 0
        return replace(self.take(numbers[kept]), geometry=parts[kept], _tree=[])


def make_index(crs: pyproj.CRS, rows: Sequence[tuple[Any, np.datetime64, np.datetime64, Any]]) -> Index:
    """An index from (polygon, start, stop, row) tuples, in order of start; rows without area are left out."""
    rows = [row for row in rows if not row[0].is_empty and row[0].area > 0]
    order = sorted(range(len(rows)), key=lambda number: (rows[number][1], number))
    geometry = np.empty(len(rows), dtype=object)
    geometry[:] = [rows[number][0] for number in order]
    times = np.array([[rows[number][1], rows[number][2]] for number in order], dtype="datetime64[us]").reshape(-1, 2)
    return Index(crs, geometry, times[:, 0], times[:, 1], tuple(rows[number][3] for number in order))


def overlay(a: Index, b: Index, *, spatial_only: bool = False) -> Index:
    """Every pair of rows that share area and, unless `spatial_only`, time: their intersections.

    Raises:
        ValueError: there is no such pair; the message says in which axis they are apart.
    """
    if len(a) == 0 or len(b) == 0:
        raise ValueError("cannot join: one of the datasets has no rows")
    left, right = a.tree.query(b.geometry, predicate="intersects")[::-1]
    order = np.lexsort((right, left))
    left, right = left[order], right[order]
    cut = shapely.intersection(a.geometry[left], b.geometry[right])
    shared = shapely.area(cut) > 0
    if not shared.any():
        (al, ab, ar, at), (bl, bb, br, bt) = a.bounds, b.bounds
        if al >= br or bl >= ar:
            axis = f"along x: [{al:.9g}, {ar:.9g}] and [{bl:.9g}, {br:.9g}]"
        elif ab >= bt or bb >= at:
            axis = f"along y: [{ab:.9g}, {at:.9g}] and [{bb:.9g}, {bt:.9g}]"
        else:
            axis = "in space: their boxes meet, none of their footprints do"
        raise ValueError(f"cannot join: the datasets lie apart {axis} (in {a.crs.name})")
    left, right, cut = left[shared], right[shared], cut[shared]
    start, stop = a.start[left], a.stop[left]
    if not spatial_only:
        start, stop = np.maximum(start, b.start[right]), np.minimum(stop, b.stop[right])
        meets = start <= stop
        if not meets.any():
            spans = " and ".join(f"[{one.interval[0]}, {one.interval[1]}]" for one in (a, b))
            raise ValueError(f"cannot join: the datasets lie apart in time: {spans}; spatial_only=True ignores time")
        left, right, cut, start, stop = left[meets], right[meets], cut[meets], start[meets], stop[meets]
    rows = tuple(_row(a.rows[i]) + _row(b.rows[j]) for i, j in zip(left, right))
    return Index(a.crs, cut, start, stop, rows)


def _row(row: Any) -> tuple[Any, ...]:
    return row if isinstance(row, tuple) else (row,)
