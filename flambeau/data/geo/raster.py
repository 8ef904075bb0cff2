"""Raster files in any projections as one layer."""

from __future__ import annotations

import re
import warnings
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyproj
import rasterio.warp
import shapely
import torch
from jaxtyping import Bool, Shaped
from rasterio.errors import RasterioError

from flambeau.data.geo.dataset import GeoDataset, Sample
from flambeau.data.geo.grid import Frame, Grid
from flambeau.data.geo.handles import Handles
from flambeau.data.geo.header import Header, read_headers
from flambeau.data.geo.index import Index, make_index
from flambeau.data.geo.projection import as_crs, rasterio_crs, same_crs, transform_polygon
from flambeau.data.geo.reading import read_onto
from flambeau.data.geo.times import END, START, as_time, interval_of
from flambeau.data.geo.warp import KERNELS


@dataclass(frozen=True)
class Scene:
    """One acquisition: a file, or the files of its bands. bands: name -> (which of `files`, its band from 1)."""

    files: tuple[Header, ...]
    bands: Mapping[str, tuple[int, int]]
    start: np.datetime64
    stop: np.datetime64
    footprint: Any = field(default=None, compare=False)  # in the CRS of the first file

    def polygon(self, crs: Any) -> Any:
        """Its footprint in a CRS."""
        return transform_polygon(self.footprint, self.files[0].projection, crs)


class RasterDataset(GeoDataset):
    """GeoTIFFs (or whatever GDAL reads) as one layer of images or masks.

    A sample has ``image`` (bands, height, width) float32, or ``mask`` (height, width) int64 (with a first axis when
    there are several bands); ``valid`` (height, width), where every band is; and ``meta``. Overlapping files are
    laid over each other in order of time, then path. Aligned pixels are read without resampling.

    Args:
        paths: a folder, a file, a pattern such as ``"tiles/**/*_B*.tif"``, a ``.zip`` of rasters, or a list of files.
        bands: names of the bands to read; all of the first file when not given.
        regex: matched with the beginning of each file's name; others are left out. Its groups are ``date``, or
            ``start`` and ``stop``, and ``band`` where every band has a file of its own.
        date_format: of those groups, as for ``strptime``; ``"%Y%m"`` stands for the whole month.
        crs, res: of the samples; those of the first file when not given. `res` is one number or (x, y).
        kind: ``"image"`` is interpolated and scaled by the file's scale and offset tags, ``"mask"`` is neither.
        resampling: ``"nearest"``, ``"bilinear"``, ``"bicubic"``, and with GDAL ``"average"`` or ``"mode"``.
        nodata: value of missing pixels, in place of the file's own.
        cache: files kept open.
        warp: ``"gdal"`` or ``"torch"``, which reprojects.
        merge: of overlapping files, the ``"first"``, the ``"last"`` or the ``"mean"`` of the valid ones.
        stack: ``"time"`` gives (time, bands, height, width), one mosaic a date of the dataset whether or not it is
            there, valid (time, height, width), and ``time`` (time, 2), start and stop in microseconds since 1970.
        band_names: names of a file's bands, where the file does not have them.
        sidecar: JSON file that remembers headers.
        errors: ``"skip"`` leaves out files that cannot be read, with a warning, instead of ``"raise"``.
        dtype: of the samples, in place of float32 or int64.
        snap: False reads boxes between pixels where they lie there.

    Raises:
        FileNotFoundError: no files matched.
        ValueError: an unknown band, a file without CRS, or an option out of its range.
        OSError: a file that cannot be read.
    """

    def __init__(
        self,
        paths: str | Path | Iterable[str | Path],
        bands: Sequence[str] | None = None,
        *,
        regex: str | None = None,
        date_format: str = "%Y%m%d",
        crs: Any = None,
        res: float | tuple[float, float] | None = None,
        kind: Literal["image", "mask"] = "image",
        resampling: str | None = None,
        nodata: float | None = None,
        cache: int = 128,
        warp: Literal["gdal", "torch"] = "gdal",
        merge: Literal["first", "last", "mean"] = "first",
        stack: Literal["time"] | None = None,
        band_names: Sequence[str] | None = None,
        sidecar: str | Path | None = None,
        errors: Literal["raise", "skip"] = "raise",
        dtype: torch.dtype | None = None,
        snap: bool = True,
    ):
        found, looked_for = list_files(paths)
        pattern = re.compile(regex or "", re.VERBOSE)
        named = [(path, match) for path in found if (match := pattern.match(Path(path).name))]
        if not named:
            raise FileNotFoundError(f"no files matched {looked_for}" + (f" and the regex {regex!r}" if regex else ""))
        headers = {header.path: header for header in read_headers([p for p, _ in named], nodata, sidecar, errors)}
        if not headers:
            raise OSError(f"none of the {len(named)} files matched by {looked_for} can be read")
        scenes = make_scenes([(headers[p], match) for p, match in named if p in headers], date_format, band_names)
        self._open(
            scenes, bands, crs=crs, res=res, kind=kind, resampling=resampling, cache=cache, warp=warp, merge=merge,
            stack=stack, errors=errors, dtype=dtype, snap=snap,
        )  # fmt: skip

    def _open(
        self, scenes: list[Scene], bands: Sequence[str] | None, *, crs: Any = None, res: Any = None,
        kind: str = "image", resampling: str | None = None, cache: int = 128, warp: str = "gdal", merge: str = "first",
        stack: str | None = None, errors: str = "raise", dtype: torch.dtype | None = None, snap: bool = True,
    ) -> None:  # fmt: skip
        """What reading scenes needs; the grid follows from the first scene's finest band."""
        for name, value, known in (
            ("kind", kind, ("image", "mask")),
            ("warp", warp, ("gdal", "torch")),
            ("merge", merge, ("first", "last", "mean")),
            ("stack", stack, (None, "time")),
            ("errors", errors, ("raise", "skip")),
            ("resampling", resampling, (None, *(KERNELS if warp == "gdal" else KERNELS[:3]))),
        ):
            if value not in known:
                raise ValueError(f"{name} must be one of {known}, got {value!r}")
        if kind == "mask" and (merge == "mean" or resampling in ("bilinear", "bicubic", "average")):
            raise ValueError("labels cannot be averaged: a mask takes resampling 'nearest' or 'mode', merge not 'mean'")
        self.resampling = resampling or ("nearest" if kind == "mask" else "bilinear")
        self.warp, self.merge, self.stack, self.errors, self.snap = warp, merge, stack, errors, snap
        self.dtype = dtype or (torch.int64 if kind == "mask" else torch.float32)
        self.handles = Handles(cache)
        first = scenes[0]
        self.bands, self.kind = tuple(first.bands if bands is None else bands), kind
        for name in self.bands:
            missing = next((scene for scene in scenes if name not in scene.bands), None)
            if missing is not None:
                raise ValueError(
                    f"bands: {missing.files[0].path} has no band {name!r}; it has {', '.join(missing.bands)}"
                )
        finest = min((first.files[first.bands[name][0]] for name in self.bands), key=lambda header: header.res)
        target = finest.projection if crs is None else as_crs(crs)
        if same_crs(target, finest.projection):
            origin, own = (finest.affine.c, finest.affine.f), finest.res
        else:  # multiples of the resolution, so that any two datasets warped to one CRS share their pixels
            bounds = rasterio.transform.array_bounds(finest.height, finest.width, finest.affine)
            default, _, _ = rasterio.warp.calculate_default_transform(
                rasterio_crs(finest.crs), rasterio_crs(target.to_wkt()), finest.width, finest.height, *bounds
            )
            origin, own = (0.0, 0.0), (default.a, -default.e)
        res_x, res_y = own if res is None else (res if isinstance(res, tuple) else (float(res), float(res)))
        self.grid = Grid(target, origin, res_x, res_y)
        self.index = _index(target, scenes)

    def indexed(self, crs: pyproj.CRS, sources: list[Scene]) -> Index:
        return _index(crs, sources)

    def read(self, frame: Frame, start: np.datetime64, stop: np.datetime64) -> Sample | None:
        start, stop = self._limited(start, stop)
        scenes = list(dict.fromkeys(self.index.rows[row] for row in self.index.query(frame.bounds, start, stop)))
        sample: Sample
        if self.stack is None:
            merged = self._mosaic(scenes, frame)
            if merged is None:
                return None
            values, valid, used = merged
            sample = {self.kind: torch.from_numpy(values).to(self.dtype), "valid": torch.from_numpy(valid)}
        else:
            known = (self.index.stop >= start) & (self.index.start <= stop)
            dates = sorted({(self.index.rows[row].start, self.index.rows[row].stop) for row in np.flatnonzero(known)})
            if not dates:
                return None
            mosaics = [self._mosaic([s for s in scenes if (s.start, s.stop) == date], frame) for date in dates]
            nothing = (
                np.zeros((len(self.bands), frame.height, frame.width)),
                np.zeros((frame.height, frame.width), bool),
            )
            layers = [torch.from_numpy((mosaic or nothing)[0]).to(self.dtype) for mosaic in mosaics]
            sample = {self.kind: torch.stack(layers)}
            sample["valid"] = torch.from_numpy(np.stack([(mosaic or nothing)[1] for mosaic in mosaics]))
            sample["time"] = torch.from_numpy(np.array(dates, dtype="datetime64[us]").astype(np.int64))
            used = [scene for mosaic in mosaics if mosaic is not None for scene in mosaic[2]]
        files = [header.path for scene in used for header in scene.files]
        times = [(str(scene.start), str(scene.stop)) for scene in used]
        return self._masked(sample | {"meta": {"files": files, "times": times}}, frame)

    def _mosaic(
        self, scenes: list[Scene], frame: Frame
    ) -> tuple[Shaped[np.ndarray, "bands height width"], Bool[np.ndarray, "height width"], list[Scene]] | None:
        """Scenes laid over each other; None when none of them has a pixel in the frame."""
        values, valid, used = None, None, []
        count = np.zeros((frame.height, frame.width), np.int64)
        for scene in scenes if self.merge != "last" else scenes[::-1]:
            read = self._read_scene(scene, frame)
            if read is None:
                continue
            used.append(scene)
            new, known = read
            if values is None or valid is None:
                values, valid = np.where(known, new, 0), known
            elif self.merge == "mean":
                values, valid = values + np.where(known, new, 0), valid | known
            else:
                values, valid = np.where(valid, values, np.where(known, new, 0)), valid | known
            count += known
            if self.merge != "mean" and valid.all():
                break
        if values is None or valid is None:
            return None
        return values / np.maximum(count, 1) if self.merge == "mean" else values, valid, used

    def _read_scene(
        self, scene: Scene, frame: Frame
    ) -> tuple[Shaped[np.ndarray, "bands height width"], Bool[np.ndarray, "height width"]] | None:
        """The dataset's bands of one scene, scaled, and where all of them are valid."""
        parts: dict[str, np.ndarray] = {}
        valid = np.ones((frame.height, frame.width), bool)
        for number, header in enumerate(scene.files):
            names = [name for name in self.bands if scene.bands[name][0] == number]
            if not names:
                continue
            bands = [scene.bands[name][1] for name in names]
            try:
                with self.handles.open(header.path) as source:
                    read = read_onto(source, header, bands, frame, kernel=self.resampling, warp=self.warp)
            except RasterioError as error:
                if self.errors == "raise":
                    raise OSError(f"{header.path}: cannot be read ({error})") from error
                warnings.warn(f"{header.path} is left out: {error}", stacklevel=2)
                return None
            if read is None:
                return None
            values, known = read
            valid &= known
            for name, band, layer in zip(names, bands, values):
                scale, offset = header.scales[band - 1], header.offsets[band - 1]
                if self.kind == "image" and (scale, offset) != (1.0, 0.0):
                    layer = layer.astype(np.float64) * scale + offset
                parts[name] = layer
        dtypes = {layer.dtype for layer in parts.values()}
        if any(dtype.kind == "u" and dtype.itemsize > 1 for dtype in dtypes):  # torch has few operations on those
            dtypes = {np.dtype(np.int64)} | {dtype for dtype in dtypes if dtype.kind == "f"}
        return np.stack([parts[name] for name in self.bands]).astype(np.result_type(*dtypes), copy=False), valid


def _index(crs: Any, scenes: list[Scene]) -> Index:
    return make_index(crs, [(scene.polygon(crs), scene.start, scene.stop, scene) for scene in scenes])


def list_files(paths: str | Path | Iterable[str | Path]) -> tuple[list[str], str]:
    """Raster files, sorted, and what was looked for, in words."""
    if not isinstance(paths, (str, Path)):
        listed = [str(path) for path in paths]
        return listed, f"a list of {len(listed)} paths"
    text = str(paths)
    if text.startswith("/vsi"):
        return [text], repr(text)
    path = Path(text)
    if path.is_dir():
        found = [str(p) for p in sorted(path.rglob("*")) if p.suffix.lower() in SUFFIXES]
        return found, f"{path}/**/*{{{','.join(SUFFIXES)}}}"
    if path.suffix.lower() == ".zip" and path.is_file():
        with zipfile.ZipFile(path) as archive:
            names = sorted(name for name in archive.namelist() if Path(name).suffix.lower() in SUFFIXES)
        return [f"/vsizip/{path}/{name}" for name in names], f"rasters in {path}"
    if any(sign in text for sign in "*?["):
        root = Path(path.anchor) if path.is_absolute() else Path()
        return sorted(map(str, root.glob(str(path.relative_to(path.anchor) if path.is_absolute() else path)))), repr(
            text
        )
    return ([text] if path.is_file() else []), repr(text)


SUFFIXES = (".tif", ".tiff", ".jp2", ".vrt", ".img")


def make_scenes(
    named: list[tuple[Header, re.Match[str]]], date_format: str, band_names: Sequence[str] | None
) -> list[Scene]:
    """Group files into scenes: one each, or where the regex has a group ``band``, those that differ in it alone.

    Raises:
        ValueError: a date that does not follow the format, a band twice, or names that do not fit a file's bands.
    """
    groups: dict[str, dict[str, Header]] = {}
    intervals: dict[str, tuple[np.datetime64, np.datetime64]] = {}
    for header, match in named:
        found, key, band = match.groupdict(), header.path, ""
        if found.get("band"):
            name, band = Path(header.path).name, found["band"]
            key = name[: match.start("band")] + "\0" + name[match.end("band") :]
            # Bands of one scene often lie in a folder for each resolution, beside each other.
        if band in groups.setdefault(key, {}):
            raise ValueError(f"{header.path}: the same scene and band as {groups[key][band].path}")
        groups[key][band] = header
        try:
            intervals[key] = _interval(found, date_format)
        except ValueError as error:
            raise ValueError(f"{header.path}: its date does not follow {date_format!r} ({error})") from None
    scenes = []
    for key, files in groups.items():
        headers = tuple(files.values())
        if "" in files:
            names = _names(headers[0], band_names)
            bands = {name: (0, number) for number, name in enumerate(names, 1)}
        else:
            bands = {name: (number, 1) for number, name in enumerate(files)}
        footprint = shapely.from_wkt(headers[0].footprint)
        scenes.append(Scene(headers, BandPlaces(bands), *intervals[key], footprint))
    return scenes


class BandPlaces(dict):
    """A dictionary that can be part of a key, as scenes are."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(tuple(self))


def _interval(found: Mapping[str, str | None], date_format: str) -> tuple[np.datetime64, np.datetime64]:
    if date := found.get("date"):
        return interval_of(date, date_format)
    start, stop = found.get("start"), found.get("stop")
    begin = START if start is None else interval_of(start, date_format)[0]
    end = END if stop is None else interval_of(stop, date_format)[1]
    if begin > end:
        raise ValueError(f"{start} to {stop} ends before it starts")
    return as_time(begin), as_time(end)


def _names(header: Header, given: Sequence[str] | None) -> list[str]:
    count = len(header.dtypes)
    if given is not None:
        if len(given) != count:
            raise ValueError(f"band_names: {header.path} has {count} bands, got {len(given)} names")
        return list(given)
    own = [name or "" for name in header.names]
    return own if all(own) and len(set(own)) == count else [str(number) for number in range(1, count + 1)]
