"""Vector files (GeoJSON, GeoPackage, shapefiles) as labels: classes of pixels, boxes, or instances."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyproj
import shapely
import torch

from flambeau.data.geo.dataset import GeoDataset, Sample, burn
from flambeau.data.geo.grid import Bounds, Frame, Grid
from flambeau.data.geo.index import Index, make_index
from flambeau.data.geo.projection import as_crs, transform_bounds, transform_polygon
from flambeau.data.geo.times import END, START
from flambeau.extras import require

MAX_BYTES = 1 << 30
MAX_FEATURES = 100_000  # read for one query
MAX_VERTICES = 5_000_000
SUFFIXES = (".geojson", ".json", ".gpkg", ".shp", ".fgb", ".parquet")


@dataclass(frozen=True)
class Layer:
    """One vector file: its CRS and the box around its features."""

    path: str
    crs: pyproj.CRS
    outline: Any

    def __hash__(self) -> int:
        return hash(self.path)


class VectorDataset(GeoDataset):
    """Features of vector files on a grid of pixels.

    A sample has, by `task`: ``"semantic"``: ``mask`` (height, width) int64, 0 where no feature is and its class
    elsewhere (later features over earlier ones); ``"boxes"``: ``boxes`` (n, 4) float32 as left, top, right, bottom in
    pixels, cut to the chip, and ``labels`` (n,); ``"instances"``: both, and ``instances`` (n, height, width) bool.
    ``valid`` is the box around all features of a file.

    Args:
        paths: a folder, file or list of files.
        res: size of a pixel in units of the CRS; a join takes that of its first dataset.
        label: column of the class, or None for one class.
        classes: the values of that column; the first is class 1. When not given, the column must hold whole numbers
            from 1 on, which are taken as they are.
        crs: of the samples; the first file's when not given.

    Raises:
        FileNotFoundError: no files matched.
        ValueError: a file without CRS or column, with a class that is not in `classes`, over 1 GiB, with coordinates
            that are not finite, or with too many features or vertices in one query.
        ModuleNotFoundError: geopandas is not installed.
    """

    kind = "mask"

    def __init__(
        self,
        paths: str | Path | Iterable[str | Path],
        res: float | tuple[float, float],
        *,
        label: str | None = "class",
        classes: Sequence[Any] | None = None,
        task: Literal["semantic", "boxes", "instances"] = "semantic",
        crs: Any = None,
    ):
        if task not in ("semantic", "boxes", "instances"):
            raise ValueError(f"task must be 'semantic', 'boxes' or 'instances', got {task!r}")
        layers = [_layer(path, label) for path in _files(paths)]
        self.label, self.classes, self.task = label, None if classes is None else tuple(classes), task
        self.bands = (label or "feature",)
        target = layers[0].crs if crs is None else as_crs(crs)
        self.grid = Grid(target, (0.0, 0.0), *(res if isinstance(res, tuple) else (float(res), float(res))))
        self.index = _index(target, layers)

    def indexed(self, crs: pyproj.CRS, sources: list[Layer]) -> Index:
        return _index(crs, sources)

    def read(self, frame: Frame, start: np.datetime64, stop: np.datetime64) -> Sample | None:
        rows = self.index.query(frame.bounds, *self._limited(start, stop))
        layers = list(dict.fromkeys(self.index.rows[row] for row in rows))
        if not layers:
            return None
        shapes = [shape for layer in layers for shape in self._features(layer, frame)]
        outlines = [(transform_polygon(layer.outline, layer.crs, frame.crs), 1) for layer in layers]
        sample: Sample = {"valid": torch.from_numpy(burn(outlines, frame) > 0)}
        if self.task == "semantic":
            sample["mask"] = torch.from_numpy(burn(shapes, frame)).long()[None] * sample["valid"]
        else:
            boxes = [_box(polygon, frame) for polygon, _ in shapes]
            kept = [number for number, box in enumerate(boxes) if box is not None]
            sample["boxes"] = torch.tensor([boxes[number] for number in kept], dtype=torch.float32).reshape(-1, 4)
            sample["labels"] = torch.tensor([shapes[number][1] for number in kept], dtype=torch.int64)
        if self.task == "instances":
            drawn = [torch.from_numpy(burn([(shapes[number][0], 1)], frame) > 0) for number in kept]
            nothing = torch.zeros(0, frame.height, frame.width, dtype=torch.bool)
            sample["instances"] = torch.stack(drawn) if drawn else nothing
        meta = {"files": [layer.path for layer in layers], "times": [(str(START), str(END))] * len(layers)}
        return self._masked(sample | {"meta": meta}, frame)

    def _features(self, layer: Layer, frame: Frame) -> list[tuple[Any, int]]:
        """The polygons of a file that meet a frame, in the frame's CRS, and their classes."""
        left, bottom, right, top = transform_bounds(frame.bounds, frame.crs, layer.crs)
        if layer.crs.is_geographic and right > 180:  # across the antimeridian: a box on either side
            boxes = [(left, bottom, 180.0, top), (-180.0, bottom, right - 360, top)]
        else:
            boxes = [(left, bottom, right, top)]
        return [shape for box in boxes for shape in self._in_box(layer, frame, box)]

    def _in_box(self, layer: Layer, frame: Frame, bounds: Bounds) -> list[tuple[Any, int]]:
        columns = [] if self.label is None else [self.label]
        table = _open(layer.path, bbox=bounds, columns=columns, max_features=MAX_FEATURES + 1)
        if len(table) > MAX_FEATURES:
            raise ValueError(f"{layer.path}: over {MAX_FEATURES} features in {frame.bounds}; choose a smaller box")
        geometry = np.asarray(table.geometry.values, dtype=object)
        vertices = int(shapely.get_num_coordinates(geometry).sum())
        if vertices > MAX_VERTICES:
            raise ValueError(f"{layer.path}: {vertices} vertices in {frame.bounds}, over {MAX_VERTICES}")
        labels = [1] * len(table) if self.label is None else [self._class(v, layer) for v in table[self.label]]
        # What reaches far beyond the frame is cut: in its projection it might have no image at all.
        reach = max(bounds[2] - bounds[0], bounds[3] - bounds[1]) / 2
        around = bounds[0] - reach, bounds[1] - reach, bounds[2] + reach, bounds[3] + reach
        shapes = []
        for polygon, label in zip(geometry, labels):
            if polygon is None or polygon.is_empty or polygon.geom_type not in ("Polygon", "MultiPolygon"):
                continue
            if not np.isfinite(shapely.get_coordinates(polygon)).all():
                raise ValueError(f"{layer.path}: a feature has coordinates that are not finite")
            polygon = shapely.clip_by_rect(shapely.make_valid(polygon), *around)
            polygon = transform_polygon(polygon, layer.crs, frame.crs)
            if not polygon.is_empty and polygon.area > 0:
                shapes.append((polygon, label))
        return shapes

    def _class(self, value: Any, layer: Layer) -> int:
        if self.classes is not None:
            if value not in self.classes:
                raise ValueError(f"{layer.path}: {self.label} is {value!r}, which is not among classes {self.classes}")
            return self.classes.index(value) + 1
        try:
            number = int(value)
        except (TypeError, ValueError):
            number = -1
        if number != value or not 1 <= number < 1 << 31:
            raise ValueError(f"{layer.path}: {self.label} is {value!r}; give classes=[...] or whole numbers from 1 on")
        return number


def _box(polygon: Any, frame: Frame) -> tuple[float, float, float, float] | None:
    """Left, top, right, bottom in pixels of what lies in the frame; None when nothing does."""
    left, bottom, right, top = frame.bounds
    cut = shapely.clip_by_rect(polygon, left, bottom, right, top)
    if cut.is_empty or cut.area == 0:
        return None
    x0, y0, x1, y1 = cut.bounds
    return (x0 - left) / frame.res_x, (top - y1) / frame.res_y, (x1 - left) / frame.res_x, (top - y0) / frame.res_y


def _files(paths: str | Path | Iterable[str | Path]) -> list[str]:
    if not isinstance(paths, (str, Path)):
        return [str(path) for path in paths]
    path = Path(paths)
    found = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES)
    if not found:
        raise FileNotFoundError(f"no files matched {path}/**/*{{{','.join(SUFFIXES)}}}")
    return [str(path) for path in found]


def _open(path: str, **options: Any) -> Any:
    """A file as a GeoDataFrame, what is wrong with it as a ValueError."""
    geopandas, errors = require("geopandas", "geo"), require("pyogrio", "geo").errors
    try:
        if path.lower().endswith(".parquet"):
            table = geopandas.read_parquet(path, bbox=options.get("bbox"))
            return table[: options.get("max_features")]
        return geopandas.read_file(path, engine="pyogrio", **options)
    except (errors.DataSourceError, errors.DataLayerError, errors.GeometryError, shapely.errors.ShapelyError) as error:
        raise ValueError(f"{path}: no vector file that can be read ({error})") from None


def _layer(path: str, label: str | None) -> Layer:
    if Path(path).stat().st_size > MAX_BYTES:
        raise ValueError(f"{path}: {Path(path).stat().st_size} bytes, more than the {MAX_BYTES} that are read")
    if path.lower().endswith(".parquet"):
        table = _open(path)
        crs, columns, bounds = table.crs, list(table.columns), table.total_bounds
    else:
        pyogrio = require("pyogrio", "geo")
        try:
            info = pyogrio.read_info(path, force_total_bounds=True)
        except pyogrio.errors.DataSourceError as error:
            raise ValueError(f"{path}: no vector file that can be read ({error})") from None
        crs, columns, bounds = info["crs"], list(info["fields"]), info["total_bounds"]
    if crs is None:
        raise ValueError(f"{path}: the file has no CRS")
    if label is not None and label not in columns:
        raise ValueError(f"{path}: no column {label!r}; there are {', '.join(map(str, columns)) or 'none'}")
    if bounds is None or not np.isfinite(bounds).all():
        raise ValueError(f"{path}: no features with finite coordinates")
    return Layer(path, as_crs(crs), shapely.box(*bounds))


def _index(crs: pyproj.CRS, layers: list[Layer]) -> Index:
    rows = [(transform_polygon(layer.outline, layer.crs, crs), START, END, layer) for layer in layers]
    return make_index(crs, rows)
