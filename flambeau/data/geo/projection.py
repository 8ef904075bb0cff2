"""Coordinate reference systems: reading, comparing and transforming points, boxes and polygons between them."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import pyproj
import rasterio.crs
import shapely
from pyproj.exceptions import CRSError

EDGE_POINTS = 21  # points set between the corners of an edge, which is a curve in another projection


@lru_cache(maxsize=256)
def _parse(value: Any) -> pyproj.CRS:
    return pyproj.CRS.from_user_input(value)


def as_crs(value: Any) -> pyproj.CRS:
    """A CRS from an EPSG code, ``"EPSG:32615"``, WKT, or a pyproj or rasterio object.

    Raises:
        ValueError: it names no known CRS.
    """
    if isinstance(value, pyproj.CRS):
        return value
    if isinstance(value, rasterio.crs.CRS):
        value = value.to_wkt()
    try:
        return _parse(value)
    except (CRSError, TypeError) as error:
        raise ValueError(f"crs must be an EPSG code, WKT or a CRS, got {value!r} ({error})") from None


def same_crs(a: pyproj.CRS, b: pyproj.CRS) -> bool:
    """Whether coordinates of the one are coordinates of the other (the order of its axes is always x, y here)."""
    return a is b or _same(a.to_wkt(), b.to_wkt())


@lru_cache(maxsize=4096)
def _same(a: str, b: str) -> bool:
    return a == b or pyproj.CRS.from_wkt(a).equals(pyproj.CRS.from_wkt(b), ignore_axis_order=True)


def transformer(source: pyproj.CRS, target: pyproj.CRS) -> pyproj.Transformer:
    """The (cached) transformation of x, y."""
    return _transformer(source.to_wkt(), target.to_wkt())


@lru_cache(maxsize=256)
def _transformer(source: str, target: str) -> pyproj.Transformer:
    return pyproj.Transformer.from_crs(source, target, always_xy=True)


@lru_cache(maxsize=256)
def rasterio_crs(wkt: str) -> rasterio.crs.CRS:
    """rasterio's own object for a WKT."""
    return rasterio.crs.CRS.from_wkt(wkt)


def transform_bounds(
    bounds: tuple[float, float, float, float], source: pyproj.CRS, target: pyproj.CRS
) -> tuple[float, float, float, float]:
    """The box around a box, edges densified (a corner-only transform cuts off what bulges).

    A geographic result that crosses the antimeridian has ``right > 180``.
    """
    if same_crs(source, target):
        return bounds
    left, bottom, right, top = transformer(source, target).transform_bounds(*bounds, densify_pts=EDGE_POINTS)
    if not np.isfinite([left, bottom, right, top]).all():
        raise ValueError(f"bounds {bounds} lie outside the area where {target.name} is defined")
    return left, bottom, right + 360 if target.is_geographic and right < left else right, top


def transform_polygon(polygon: Any, source: pyproj.CRS, target: pyproj.CRS) -> Any:
    """A polygon in another CRS, edges densified.

    In a geographic target, what crosses the antimeridian is cut there, and what holds a pole reaches up to it.
    Vertices without an image are left out; the result may be empty.
    """
    if same_crs(source, target):
        return polygon
    parts = [_transform_ring(part, source, target) for part in shapely.get_parts(polygon)]
    return shapely.union_all([part for part in parts if not part.is_empty])


def _transform_ring(polygon: Any, source: pyproj.CRS, target: pyproj.CRS) -> Any:
    longest = max(np.ptp(np.asarray(polygon.bounds)[[0, 2]]), np.ptp(np.asarray(polygon.bounds)[[1, 3]]))
    if not longest > 0:
        return shapely.Polygon()
    dense = shapely.segmentize(polygon, longest / (EDGE_POINTS + 1))
    change = transformer(source, target)
    exterior = np.column_stack(change.transform(*shapely.get_coordinates(dense.exterior).T))
    exterior = exterior[np.isfinite(exterior).all(1)]
    if len(exterior) < 4:
        return shapely.Polygon()
    if target.is_geographic:
        return _geographic(exterior)
    holes = [np.column_stack(change.transform(*shapely.get_coordinates(ring).T)) for ring in dense.interiors]
    return shapely.make_valid(
        shapely.Polygon(exterior, [hole for hole in holes if np.isfinite(hole).all() and len(hole) > 3])
    )


def _geographic(ring: np.ndarray) -> Any:
    """The region of a ring of longitudes and latitudes on the sphere, as polygons within [-180, 180]."""
    longitude = np.unwrap(ring[:, 0], period=360)
    turn = longitude[-1] - longitude[0]
    points = np.column_stack([longitude, ring[:, 1]])
    if abs(turn) > 180:  # once around: the pole is inside
        pole = 90.0 if ring[:, 1].mean() > 0 else -90.0
        points = np.vstack([points, [longitude[-1], pole], [longitude[0], pole]])
    polygon = shapely.make_valid(shapely.Polygon(points))
    pieces = []
    for shift in (-720, -360, 0, 360, 720):
        moved = shapely.transform(polygon, lambda xy, shift=shift: xy + [shift, 0])
        pieces.append(shapely.intersection(moved, shapely.box(-180, -90, 180, 90)))
    return shapely.union_all(pieces)
