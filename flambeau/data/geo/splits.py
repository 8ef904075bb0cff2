"""Splits in space and time. All return views; what lies outside a view's region is not valid in its samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import shapely
import torch

from flambeau.data.geo.dataset import GeoDataset
from flambeau.data.geo.times import as_time


def random_tiles(ds: GeoDataset, fractions: Sequence[float], generator: torch.Generator) -> list[GeoDataset]:
    """Whole rows of the index (files), each to one part. Tiles that overlap may lie in different parts."""
    order = torch.randperm(len(ds.index), generator=generator).numpy()
    return [ds.take(np.sort(order[part])) for part in _parts(len(order), fractions)]


def grid_cells(
    ds: GeoDataset, cell: int, fractions: Sequence[float], generator: torch.Generator, *, buffer: int = 0
) -> list[GeoDataset]:
    """Square cells of the dataset's area, dealt out at random: a spatial-block split.

    Args:
        cell: side of a cell in pixels.
        buffer: pixels left out at every edge of a cell, so that two parts are at least twice as far apart.

    Raises:
        ValueError: fractions that are no parts of one, fewer cells than parts, or a buffer that leaves nothing.
    """
    if cell < 1 or not 0 <= 2 * buffer < cell:
        raise ValueError(f"buffer must leave something of a cell of {cell} pixels, got {buffer}")
    left, up, right, down = ds.grid.cells(ds.bounds, cover=True)
    inner = cell - 2 * buffer
    boxes = [
        shapely.box(*ds.grid.frame_at(column + buffer, row + buffer, inner, inner).bounds)
        for row in range(up, down, cell)
        for column in range(left, right, cell)
    ]
    boxes = [box for box in boxes if len(ds.index.query(box.bounds, None, None))]
    order = torch.randperm(len(boxes), generator=generator).tolist()
    regions = []
    for part in _parts(len(boxes), fractions):
        regions.append(shapely.MultiPolygon([boxes[number] for number in order[part]]))
    return [ds.within(region) for region in regions]


def regions(ds: GeoDataset, polygons: Sequence[Any], *, buffer: float = 0.0) -> list[GeoDataset]:
    """One part for each polygon (in the dataset's CRS), each less `buffer` units along its edge.

    Raises:
        ValueError: two polygons share area.
    """
    for number, polygon in enumerate(polygons):
        for other in polygons[:number]:
            if shapely.intersection(polygon, other).area > 0:
                raise ValueError("polygons of a split must not overlap")
    return [ds.within(polygon.buffer(-buffer)) for polygon in polygons]


def time_series(ds: GeoDataset, cuts: Sequence[Any]) -> list[GeoDataset]:
    """Before the first of the moments `cuts`, between each and the next, and from the last on.

    Raises:
        ValueError: moments that do not ascend.
    """
    moments = [as_time(cut) for cut in cuts]
    if any(one >= two for one, two in zip(moments, moments[1:])):
        raise ValueError(f"cuts must ascend, got {[str(moment) for moment in moments]}")
    tick = np.timedelta64(1, "us")
    edges = [None, *moments, None]
    return [ds.within(start=a, stop=None if b is None else b - tick) for a, b in zip(edges, edges[1:])]


def _parts(count: int, fractions: Sequence[float]) -> list[slice]:
    if not fractions or min(fractions) <= 0 or not math.isclose(sum(fractions), 1, abs_tol=1e-6):
        raise ValueError(f"fractions must be positive and add up to 1, got {list(fractions)}")
    edges = [round(count * sum(fractions[:number])) for number in range(len(fractions) + 1)]
    if any(a == b for a, b in zip(edges, edges[1:])):
        raise ValueError(f"fractions {list(fractions)} of {count} leave a part empty")
    return [slice(a, b) for a, b in zip(edges, edges[1:])]
