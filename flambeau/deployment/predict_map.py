"""A model's prediction for a whole dataset, as one georeferenced map."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import numpy as np
import rasterio
import rasterio.features
import shapely
import torch
from jaxtyping import Float
from rasterio.enums import ColorInterp, Resampling
from rasterio.windows import Window
from torch import Tensor

from flambeau.data.geo import GeoDataset, Query, collate
from flambeau.data.geo.projection import rasterio_crs
from flambeau.extras import require

BLOCK = 256
Place = tuple[int, int, int, int]  # first row and column, height and width in pixels of the map
Colours = dict[int, tuple[int, int, int, int]]


def hann_window(height: int, width: int) -> Float[Tensor, "height width"]:
    """Weights of a chip's pixels: 1 in the middle, little but above 0 at the edge, where a network sees only half."""

    def along(size: int) -> Tensor:
        return torch.sin(torch.pi * (torch.arange(size) + 0.5) / size).square()

    return (along(height)[:, None] * along(width)[None]).clamp_min(1e-4)


@torch.no_grad()
def predict_map(
    model: Callable[[Tensor], Tensor],
    ds: GeoDataset,
    sampler: Iterable[Query],
    path: str | Path,
    *,
    output: Literal["classes", "scores"] = "classes",
    transform: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
    batch_size: int = 8,
    device: torch.device | str = "cpu",
    colours: Colours | None = None,
    polygons: str | Path | None = None,
    progress: Any = None,
) -> Path:
    """Predict every chip of a sampler and blend them into a tiled, compressed GeoTIFF with overviews.

    Scores of overlapping chips are averaged with :func:`hann_window`; with ``"classes"``, the class of the largest mean
    is written. Where no chip is valid, the map has its nodata value: NaN for scores, 255 for classes (65535 from 255
    classes on). Rows are written once no later chip reaches them, so that memory depends on the width of the map and
    the size of a chip, not on its height. The file is whole or absent.

    Args:
        model: from images (batch, bands, height, width) to scores (batch, channels, height, width). It is called in the
            mode it is in: ``eval()`` it first.
        sampler: which chips, for example ``MapSampler(ds, 256, stride=128)``; the map is the box around them.
        transform: applied to each sample, for example the normalisation of the training.
        colours: class -> (red, green, blue, alpha).
        polygons: file (``.geojson``, ``.gpkg``) for the areas of one class, with the column ``class``.
        progress: as for ``Trainer.fit``.

    Raises:
        ValueError: an empty sampler, chips that are not on the dataset's grid, or scores that do not fit the images.
    """
    if output not in ("classes", "scores"):
        raise ValueError(f"output must be 'classes' or 'scores', got {output!r}")
    queries = list(sampler)
    places = sorted((_place(ds, query), number) for number, query in enumerate(queries))
    if not places:
        raise ValueError("sampler has no chips")
    up, left = places[0][0][0], min(place[1] for place, _ in places)
    down = max(place[0] + place[2] for place, _ in places)
    right = max(place[1] + place[3] for place, _ in places)
    frame = ds.grid.frame_at(left, up, right - left, down - up)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part.tif")
    try:
        with ExitStack() as stack:
            task = None if progress is None else stack.enter_context(progress("predict", len(places)))
            strip, target = None, None
            for there, scores, valid in _predictions(model, ds, queries, places, transform, batch_size, device):
                if strip is None or target is None:
                    strip = _Strip(scores.shape[1], frame.width)
                    target = stack.enter_context(_create(temporary, frame, scores.shape[1], output, colours))
                _write(target, output, *strip.until((there[0][0] - up) // BLOCK * BLOCK))
                for place, score, known in zip(there, scores, valid):
                    strip.add(score, known, place[0] - up, place[1] - left)
                if task is not None:
                    task.advance(len(there))
            if strip is None or target is None:
                raise ValueError("sampler: none of its chips has a pixel")
            _write(target, output, *strip.until(frame.height))
            factors = [factor for factor in (2, 4, 8, 16, 32) if max(frame.width, frame.height) // factor >= BLOCK]
            if factors:
                target.build_overviews(factors, Resampling.nearest if output == "classes" else Resampling.average)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    if polygons is not None:
        polygonize(path, polygons)
    return path


def _place(ds: GeoDataset, query: Query) -> Place:
    if query.bounds is None or query.res not in (None, ds.res):
        raise ValueError(f"sampler: chips must be boxes at the resolution of the dataset, got {query}")
    left, up, right, down = ds.grid.cells(query.bounds)
    return up, left, down - up, right - left


def _predictions(
    model: Any,
    ds: GeoDataset,
    queries: list[Query],
    places: list[tuple[Place, int]],
    transform: Any,
    batch_size: int,
    device: Any,
) -> Iterator[tuple[list[Place], Tensor, Tensor]]:
    """Batches of chips of one size in the order of their rows: where they are, their scores, what is valid."""
    start = 0
    while start < len(places):
        size = places[start][0][2:]
        batch = [places[start]]
        while (
            len(batch) < batch_size and start + len(batch) < len(places) and places[start + len(batch)][0][2:] == size
        ):
            batch.append(places[start + len(batch)])
        start += len(batch)
        samples, there = [], []
        for place, number in batch:
            try:
                samples.append(ds[queries[number]])
                there.append(place)
            except IndexError:  # a footprint may reach where its file has no pixel
                continue
        if not samples:
            continue
        valid = torch.stack([sample["valid"] for sample in samples])
        if transform is not None:
            samples = [transform(sample) for sample in samples]
        scores = model(collate(samples)["image"].to(device)).float().cpu()
        if scores.ndim != 4 or scores.shape[0] != len(samples) or scores.shape[2:] != valid.shape[1:]:
            raise ValueError(
                f"model must give (batch, channels, {valid.shape[1]}, {valid.shape[2]}) for {len(samples)} images, "
                f"got {tuple(scores.shape)}"
            )
        yield there, scores, valid


class _Strip:
    """Weighted sums of the rows that are not yet written."""

    def __init__(self, channels: int, width: int):
        self.first = 0
        self.sums = torch.zeros(channels, 0, width, dtype=torch.float64)
        self.weights = torch.zeros(0, width, dtype=torch.float64)

    def add(self, scores: Tensor, valid: Tensor, row: int, column: int) -> None:
        missing = row + scores.shape[1] - self.first - self.weights.shape[0]
        if missing > 0:
            self.sums = torch.cat([self.sums, self.sums.new_zeros(len(self.sums), missing, self.sums.shape[2])], 1)
            self.weights = torch.cat([self.weights, self.weights.new_zeros(missing, self.weights.shape[1])])
        weight = hann_window(*valid.shape).double() * valid
        rows = slice(row - self.first, row - self.first + scores.shape[1])
        columns = slice(column, column + scores.shape[2])
        self.sums[:, rows, columns] += torch.where(valid, scores, 0) * weight
        self.weights[rows, columns] += weight

    def until(self, row: int) -> tuple[int, Tensor, Tensor]:
        """Take out the rows before `row`: their first, their means, and whether anything is known of them."""
        count = max(0, row - self.first)
        first, have = self.first, min(count, self.weights.shape[0])
        sums, weights = self.sums[:, :have], self.weights[:have]
        self.sums, self.weights = self.sums[:, have:], self.weights[have:]
        self.first += count
        known = weights > 0
        return first, sums / torch.where(known, weights, 1), known


def _create(path: Path, frame: Any, channels: int, output: str, colours: Colours | None) -> Any:
    if output == "scores":
        kind: dict[str, Any] = {"count": channels, "dtype": "float32", "nodata": float("nan"), "predictor": 3}
    else:
        small = channels <= 255
        kind = {"count": 1, "dtype": "uint8" if small else "uint16", "nodata": 255 if small else 65535}
    target = rasterio.open(
        path, "w", driver="GTiff", width=frame.width, height=frame.height, crs=rasterio_crs(frame.crs.to_wkt()),
        transform=frame.transform, tiled=True, blockxsize=BLOCK, blockysize=BLOCK, compress="deflate",
        BIGTIFF="IF_SAFER", SPARSE_OK=True, **kind,
    )  # fmt: skip
    if colours is not None and output == "classes":
        target.colorinterp = [ColorInterp.palette]
        target.write_colormap(1, colours)
    return target


def _write(target: Any, output: str, first: int, means: Tensor, known: Tensor) -> None:
    if known.shape[0] == 0:
        return
    if output == "scores":
        values = torch.where(known, means, torch.nan).numpy().astype(np.float32)
    else:
        values = torch.where(known, means.argmax(0), int(target.nodata)).numpy().astype(target.dtypes[0])[None]
    target.write(values, window=Window(0, first, target.width, known.shape[0]))


def polygonize(raster: str | Path, path: str | Path) -> Path:
    """The areas of one value of a raster's first band as polygons with the column ``class``.

    A GeoJSON is in longitude and latitude, other formats in the raster's CRS.
    """
    geopandas = require("geopandas", "geo")
    path = Path(path)
    with rasterio.open(raster) as source:
        drawn = rasterio.features.shapes(
            rasterio.band(source, 1), mask=source.dataset_mask(), transform=source.transform
        )
        found = [(shapely.geometry.shape(geometry), int(value)) for geometry, value in drawn]
        table = geopandas.GeoDataFrame({"class": [v for _, v in found]}, geometry=[g for g, _ in found], crs=source.crs)
    if path.suffix.lower() in (".geojson", ".json"):
        table = table.to_crs("EPSG:4326")
    temporary = path.with_name(f"part_{path.name}")
    table.to_file(temporary, engine="pyogrio")
    temporary.replace(path)
    return path
