"""What every layer of a map has in common, and the joins of two: ``a & b``, ``a | b``."""

from __future__ import annotations

import copy
from typing import Any, Self

import numpy as np
import pyproj
import rasterio.features
import shapely
import torch
from jaxtyping import Bool
from torch import Tensor
from torch.utils.data import Dataset

from flambeau.data.geo.grid import Bounds, Frame, Grid, Query
from flambeau.data.geo.index import Index, overlay
from flambeau.data.geo.projection import as_crs, same_crs, transform_polygon, transformer
from flambeau.data.geo.times import END, START, as_interval

Sample = dict[str, Any]
PIXELS = ("image", "mask")  # keys whose tensors are (..., channels, height, width)


class GeoDataset(Dataset):
    """A layer indexed by space and time. ``ds[x0:x1, y0:y1, t0:t1]`` reads a sample; views never change their source.

    Attributes:
        index: rows of polygons and intervals, in the dataset's CRS.
        grid: the pixels that queries are snapped to.
        snap: False reads boxes where they lie, between pixels if need be.
        region: polygon outside of which nothing is valid, or None.
        span: interval outside of which nothing is read.
    """

    index: Index
    grid: Grid
    bands: tuple[str, ...]
    kind: str
    snap: bool = True
    region: Any = None
    span: tuple[np.datetime64, np.datetime64] = (START, END)

    @property
    def crs(self) -> pyproj.CRS:
        return self.grid.crs

    @property
    def res(self) -> tuple[float, float]:
        """Size of a pixel along x and y, in units of the CRS."""
        return self.grid.res_x, self.grid.res_y

    @property
    def bounds(self) -> Bounds:
        """Left, bottom, right, top of all rows."""
        return self.index.bounds

    @property
    def interval(self) -> tuple[np.datetime64, np.datetime64]:
        """From the first start to the last end of all rows."""
        return self.index.interval

    def frame(self, query: Query) -> Frame:
        """The pixels a query stands for.

        Raises:
            ValueError: a box without a pixel.
        """
        wanted = query.bounds or (float("nan"),) * 4
        bounds = tuple(own if np.isnan(value) else value for value, own in zip(wanted, self.bounds))
        return self.grid.with_res(*(query.res or self.res)).frame(bounds, snap=self.snap)  # type: ignore[arg-type]

    def __getitem__(self, key: Any) -> Sample:
        """Read a sample: image or mask, `valid` (height, width), and `meta` with the files and times it is from.

        Image and mask are 0 where not valid.

        Raises:
            IndexError: no row meets the query; the message has the bounds of the dataset.
            TypeError, ValueError: something that is no query.
        """
        query = Query.of(key)
        frame = self.frame(query)
        start, stop = query.start or self.span[0], query.stop or self.span[1]
        sample = self.read(frame, start, stop) if len(self.index.query(frame.bounds, start, stop)) else None
        if sample is None:
            raise IndexError(
                f"nothing at {frame.bounds}, {start} to {stop}: the dataset has bounds {self.bounds} in "
                f"{self.crs.name} and times {self.interval[0]} to {self.interval[1]}"
            )
        sample["meta"] |= {"crs": frame.crs.to_wkt(), "bounds": frame.bounds, "transform": tuple(frame.transform)[:6]}
        if "mask" in sample and sample["mask"].shape[-3] == 1:
            sample["mask"] = sample["mask"].squeeze(-3)
        return sample

    def read(self, frame: Frame, start: np.datetime64, stop: np.datetime64) -> Sample | None:
        """A sample on a frame of the dataset's CRS, masks with their channel axis; None where there is nothing."""
        raise NotImplementedError

    def on(self, grid: Grid) -> Self:
        """A view of the dataset on another grid (CRS, origin and resolution)."""
        view = copy.copy(self)
        view.grid = grid
        if not same_crs(grid.crs, self.crs):
            view.index = self.indexed(grid.crs, list(dict.fromkeys(self.index.rows)))
            if self.region is not None:
                view.region = transform_polygon(self.region, self.crs, grid.crs)
                view.index = view.index.clip(view.region)
            view.index = view.index.between(*self.span)
        return view

    def indexed(self, crs: pyproj.CRS, sources: list[Any]) -> Index:
        """The index of the files that the dataset reads, with their outlines in `crs`."""
        raise NotImplementedError

    def at(self, lon: float, lat: float, size: int = 256, start: Any = None, stop: Any = None) -> Sample:
        """The sample of `size` x `size` pixels around a longitude and latitude (WGS 84)."""
        x, y = transformer(as_crs("EPSG:4326"), self.crs).transform(lon, lat)
        column, row = self.grid.cell(x - size / 2 * self.res[0], y + size / 2 * self.res[1])
        begin, end = as_interval(start, stop)
        return self[Query(self.grid.frame_at(column, row, size, size).bounds, begin, end)]

    def within(self, region: Any = None, start: Any = None, stop: Any = None) -> Self:
        """A view of a region (a shapely polygon in the dataset's CRS) and an interval; outside, nothing is valid."""
        view = copy.copy(self)
        if region is not None:
            view.region = region if self.region is None else shapely.intersection(self.region, region)
            view.index = view.index.clip(region)
        if (start, stop) != (None, None):
            begin, end = as_interval(start, stop)
            view.span = max(self.span[0], begin), min(self.span[1], end)
            view.index = view.index.between(begin, end)
        return view

    def take(self, rows: Any) -> Self:
        """A view of some rows of the index, by number or mask."""
        view = copy.copy(self)
        view.index = view.index.take(rows)
        return view

    def _limited(self, start: np.datetime64, stop: np.datetime64) -> tuple[np.datetime64, np.datetime64]:
        return max(start, self.span[0]), min(stop, self.span[1])

    def _masked(self, sample: Sample, frame: Frame) -> Sample:
        """What lies outside the region is not valid, and 0."""
        if self.region is not None and not shapely.contains_properly(self.region, shapely.box(*frame.bounds)):
            inside = torch.from_numpy(burn([(self.region, 1)], frame) > 0)
            sample["valid"] = sample["valid"] & inside
            for key in PIXELS:
                if key in sample:
                    sample[key] = sample[key] * inside
        return sample

    def __and__(self, other: GeoDataset) -> IntersectionDataset:
        return IntersectionDataset(self, other)

    def __or__(self, other: GeoDataset) -> UnionDataset:
        return UnionDataset(self, other)

    def to_xarray(self, key: Any) -> Any:
        """A query as an xarray ``Dataset`` with coordinates and CRS; see :mod:`flambeau.data.geo.xarray_io`."""
        from flambeau.data.geo.xarray_io import to_xarray

        return to_xarray(self, key)


class IntersectionDataset(GeoDataset):
    """Where and when two datasets both are; their samples put together, bands one after the other.

    The second is seen on the grid of the first. `spatial_only` ignores times: each is read over all of its own.

    Raises:
        ValueError: they are disjoint (the message says in which axis).
    """

    def __init__(self, a: GeoDataset, b: GeoDataset, *, spatial_only: bool = False):
        self.a, self.b, self.spatial_only = a, b.on(a.grid), spatial_only
        self.grid, self.snap = a.grid, a.snap
        self.bands, self.kind = a.bands + b.bands, a.kind if a.kind == b.kind else "image and mask"
        self.index = overlay(self.a.index, self.b.index, spatial_only=spatial_only)

    def on(self, grid: Grid) -> Self:
        view = type(self)(self.a.on(grid), self.b, spatial_only=self.spatial_only)
        return _limited_like(view, self)

    def read(self, frame: Frame, start: np.datetime64, stop: np.datetime64) -> Sample | None:
        start, stop = self._limited(start, stop)
        first = self.a.read(frame, start, stop)
        if first is None:
            return None
        second = self.b.read(frame, START, END) if self.spatial_only else self.b.read(frame, start, stop)
        return None if second is None else self._masked(_together(first, second), frame)


class UnionDataset(GeoDataset):
    """Where or when either of two datasets of the same bands is; the second fills what the first leaves invalid.

    Raises:
        ValueError: their bands or kinds differ.
    """

    def __init__(self, a: GeoDataset, b: GeoDataset):
        if (a.kind, a.bands) != (b.kind, b.bands):
            raise ValueError(f"cannot unite {a.kind} {a.bands} with {b.kind} {b.bands}: choose the same bands of both")
        self.a, self.b = a, b.on(a.grid)
        self.grid, self.snap, self.bands, self.kind = a.grid, a.snap, a.bands, a.kind
        one, two = self.a.index, self.b.index
        self.index = Index(
            one.crs, np.concatenate([one.geometry, two.geometry]), np.concatenate([one.start, two.start]),
            np.concatenate([one.stop, two.stop]), one.rows + two.rows,
        )  # fmt: skip

    def on(self, grid: Grid) -> Self:
        return _limited_like(type(self)(self.a.on(grid), self.b), self)

    def read(self, frame: Frame, start: np.datetime64, stop: np.datetime64) -> Sample | None:
        start, stop = self._limited(start, stop)
        samples = [one.read(frame, start, stop) for one in (self.a, self.b)]
        found = [sample for sample in samples if sample is not None]
        if not found:
            return None
        return self._masked(found[0] if len(found) == 1 else _over(*found), frame)


def _limited_like(view: Any, source: GeoDataset) -> Any:
    if source.region is not None:
        view = view.within(transform_polygon(source.region, source.crs, view.crs))
    return view if source.span == (START, END) else view.within(start=source.span[0], stop=source.span[1])


def _meta(a: Sample, b: Sample) -> dict[str, Any]:
    return {key: a["meta"][key] + b["meta"][key] for key in ("files", "times")}


def _together(a: Sample, b: Sample) -> Sample:
    """The keys of both; bands one after the other, valid where both are."""
    sample = {**a, **b, "valid": a["valid"] & b["valid"], "meta": _meta(a, b)}
    for key in set(a) & set(b) - {"valid", "meta"}:
        if key not in PIXELS:
            raise ValueError(f"cannot join: both datasets have {key!r}")
        lead = torch.broadcast_shapes(a[key].shape[:-3], b[key].shape[:-3])
        parts = [tensor.expand(*lead, *tensor.shape[-3:]) for tensor in (a[key], b[key])]
        sample[key] = torch.cat(parts, dim=-3)
    for key in PIXELS:
        if key in sample:
            sample[key] = sample[key] * sample["valid"].unsqueeze(-3)
    return sample


def _over(a: Sample, b: Sample) -> Sample:
    """One sample over another: pixels of `a` where it is valid, else of `b`; dates and features of both."""
    sample = {**a, "meta": _meta(a, b)}
    if "time" in a:  # stacked: each keeps its dates
        order = torch.cat([a["time"], b["time"]])[:, 0].argsort(stable=True)
        for key in ("image", "mask", "valid", "time"):
            if key in a:
                sample[key] = torch.cat([a[key], b[key]])[order]
        return sample
    sample["valid"] = a["valid"] | b["valid"]
    for key in set(a) - {"valid", "meta"}:
        sample[key] = torch.where(a["valid"], a[key], b[key]) if key in PIXELS else torch.cat([a[key], b[key]])
    return sample


def burn(shapes: list[tuple[Any, int]], frame: Frame) -> Bool[np.ndarray, "height width"]:
    """Polygons drawn into a frame, later ones over earlier; a pixel belongs to what holds its centre. int32."""
    shapes = [(polygon, value) for polygon, value in shapes if not polygon.is_empty]
    if not shapes:
        return np.zeros((frame.height, frame.width), np.int32)
    return rasterio.features.rasterize(
        shapes, out_shape=(frame.height, frame.width), transform=frame.transform, fill=0, dtype=np.int32
    )


def stack_samples(samples: list[Sample]) -> Sample:
    """Collate for ``DataLoader``: tensors of one shape are stacked, what differs in shape and `meta` become lists."""
    batch: Sample = {}
    for key in samples[0]:
        values = [sample[key] for sample in samples]
        alike = isinstance(values[0], Tensor) and len({value.shape for value in values}) == 1 and key not in FEATURES
        batch[key] = torch.stack(values) if alike else values
    return batch


FEATURES = ("boxes", "labels", "instances")  # one tensor a sample, as many rows as it has features
collate = stack_samples
