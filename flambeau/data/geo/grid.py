"""Pixel grids, frames on them, and queries."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyproj
from affine import Affine

from flambeau.data.geo.times import as_interval

MAX_PIXELS = 1 << 28  # of one sample

Bounds = tuple[float, float, float, float]


@dataclass(frozen=True)
class Frame:
    """A north-up rectangle of pixels: what is read into one tensor.

    left, top: outer corner of the first pixel, in units of `crs`. res_x, res_y: size of a pixel (both positive).
    """

    crs: pyproj.CRS
    left: float
    top: float
    res_x: float
    res_y: float
    width: int
    height: int

    @property
    def bounds(self) -> Bounds:
        """Left, bottom, right, top."""
        return (
            self.left,
            self.top - self.height * self.res_y,
            self.left + self.width * self.res_x,
            self.top,
        )

    @property
    def transform(self) -> Affine:
        """From column and row to x and y."""
        return Affine(self.res_x, 0.0, self.left, 0.0, -self.res_y, self.top)

    def centers(self) -> tuple[np.ndarray, np.ndarray]:
        """x of every column and y of every row, of the pixel centres."""
        x = self.left + (np.arange(self.width) + 0.5) * self.res_x
        return x, self.top - (np.arange(self.height) + 0.5) * self.res_y


@dataclass(frozen=True)
class Grid:
    """Pixel edges at whole multiples of (res_x, res_y) from `origin`; layers on one grid share them exactly.

    Raises:
        ValueError: a resolution that is not positive and finite.
    """

    crs: pyproj.CRS
    origin: tuple[float, float]
    res_x: float
    res_y: float

    def __post_init__(self) -> None:
        if not (0 < self.res_x < math.inf and 0 < self.res_y < math.inf):
            raise ValueError(f"res must be positive and finite, got ({self.res_x}, {self.res_y})")

    def with_res(self, res_x: float, res_y: float) -> Grid:
        """The same origin with other pixels."""
        return self if (res_x, res_y) == (self.res_x, self.res_y) else replace(self, res_x=res_x, res_y=res_y)

    def cell(self, x: float, y: float) -> tuple[int, int]:
        """Column and row of the pixel edge nearest to a point; rows count downwards from the origin."""
        return round((x - self.origin[0]) / self.res_x), round((self.origin[1] - y) / self.res_y)

    def frame_at(self, column: int, row: int, width: int, height: int) -> Frame:
        """The frame of so many pixels, of which the first is at (column, row)."""
        left, top = self.origin[0] + column * self.res_x, self.origin[1] - row * self.res_y
        return Frame(self.crs, left, top, self.res_x, self.res_y, width, height)

    def cells(self, bounds: Bounds, *, cover: bool = False) -> tuple[int, int, int, int]:
        """Columns and rows (first, one past the last) of a box: its nearest edges, or with `cover` those around it."""
        left, right = (bounds[0] - self.origin[0]) / self.res_x, (bounds[2] - self.origin[0]) / self.res_x
        up, down = (self.origin[1] - bounds[3]) / self.res_y, (self.origin[1] - bounds[1]) / self.res_y
        if cover:  # a millionth of a pixel is rounding, not another pixel
            return math.floor(left + 1e-6), math.floor(up + 1e-6), math.ceil(right - 1e-6), math.ceil(down - 1e-6)
        return round(left), round(up), round(right), round(down)

    def frame(self, bounds: Bounds, *, snap: bool = True) -> Frame:
        """The frame of a box: its size rounded to pixels, and with `snap` moved to the nearest pixel edges.

        Raises:
            ValueError: the box is smaller than half a pixel, has no finite size, or holds over 2^28 pixels.
        """
        if not np.isfinite(bounds).all():
            raise ValueError(f"bounds must be finite, got {bounds}")
        width = round((bounds[2] - bounds[0]) / self.res_x)
        height = round((bounds[3] - bounds[1]) / self.res_y)
        if width < 1 or height < 1:
            raise ValueError(f"bounds {bounds} hold no pixel of {self.res_x} x {self.res_y}")
        if width * height > MAX_PIXELS:
            raise ValueError(
                f"bounds {bounds} hold {width} x {height} pixels, more than {MAX_PIXELS}; use a larger res"
            )
        if not snap:
            return Frame(self.crs, bounds[0], bounds[3], self.res_x, self.res_y, width, height)
        return self.frame_at(*self.cell(bounds[0], bounds[3]), width, height)


@dataclass(frozen=True)
class Query:
    """A box in the dataset's CRS, an interval of time, and the size of a pixel where it is not the dataset's.

    `bounds` is (left, bottom, right, top); `start` and `stop` are ``datetime64`` or None; what is None is everything.
    """

    bounds: Bounds | None = None
    start: np.datetime64 | None = None
    stop: np.datetime64 | None = None
    res: tuple[float, float] | None = None

    @classmethod
    def of(cls, key: Any) -> Query:
        """From what stands in brackets: ``ds[x0:x1:xres, y0:y1:yres, t0:t1]``, from the right as much as is needed.

        Raises:
            TypeError: it is no query and no slices.
        """
        if isinstance(key, Query):
            return key
        slices = key if isinstance(key, tuple) else (key,)
        if not 1 <= len(slices) <= 3 or not all(isinstance(part, slice) for part in slices):
            raise TypeError(f"expected a Query or [x0:x1:xres, y0:y1:yres, t0:t1], got {key!r}")
        x, y, time = (*slices, slice(None), slice(None))[:3]
        if time.step is not None:
            raise TypeError(f"a step in time has no meaning, got {time.step!r}")
        res = None
        if x.step is not None or y.step is not None:
            res = (float(x.step or y.step), float(y.step or x.step))
        box = tuple(float("nan") if value is None else float(value) for value in (x.start, y.start, x.stop, y.stop))
        start, stop = as_interval(time.start, time.stop) if (time.start, time.stop) != (None, None) else (None, None)
        return cls(None if np.isnan(box).all() else box, start, stop, res)  # type: ignore[arg-type]
