"""What is known of a raster file without reading its pixels, and a sidecar that remembers it."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyproj
import rasterio
import rasterio.features
import shapely
from affine import Affine
from rasterio.enums import MaskFlags
from rasterio.errors import RasterioError

from flambeau.data.geo.projection import as_crs
from flambeau.files import read_json, write_json

FOOTPRINT_SIDE = 256  # pixels of the decimated mask a footprint is drawn from
MANY_VERTICES = 64  # a footprint with more is simplified, and widened by as much
SCANNED_PIXELS = 1 << 28  # a larger mask without overviews is not scanned; its footprint is the file's outline
BLOCK_BYTES = 1 << 28  # a file is decoded block by block; a block declared larger than this is refused
VERSION = 1


@dataclass(frozen=True)
class Header:
    """The header of one raster file.

    crs is WKT. transform holds the six coefficients a, b, c, d, e, f from column, row to x, y. nodata is the value of
    missing pixels or None; mask tells that an alpha or mask band says what is missing. footprint is the WKT of the
    polygon of its valid pixels in its own CRS, up to a pixel of the decimated mask it was drawn from too large.
    """

    path: str
    modified: int
    bytes: int
    crs: str
    transform: tuple[float, ...]
    width: int
    height: int
    dtypes: tuple[str, ...]
    nodata: float | None
    mask: bool
    names: tuple[str | None, ...]
    scales: tuple[float, ...]
    offsets: tuple[float, ...]
    block: tuple[int, int]
    footprint: str

    @property
    def affine(self) -> Affine:
        return Affine(*self.transform)

    @cached_property
    def projection(self) -> pyproj.CRS:
        return as_crs(self.crs)

    @property
    def res(self) -> tuple[float, float]:
        """Size of a pixel along x and y."""
        a, b, _, d, e, _ = self.transform
        return float(np.hypot(a, d)), float(np.hypot(b, e))


def read_header(path: str, nodata: float | None = None) -> Header:
    """Open a raster file and read its header and footprint.

    Args:
        nodata: the value of missing pixels, in place of the one in the file.

    Raises:
        OSError: it cannot be opened or its mask cannot be read.
        ValueError: no CRS or no transform, no bands, complex values, or blocks over 256 MiB.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with rasterio.open(path) as source:
            if source.crs is None:
                raise ValueError(f"{path}: the file has no CRS; write one into it, for example with gdal_edit -a_srs")
            if source.transform == Affine.identity() or source.transform.determinant == 0:
                raise ValueError(f"{path}: the file has no geotransform")
            if source.count == 0 or any("complex" in dtype for dtype in source.dtypes):
                raise ValueError(f"{path}: expected bands of real numbers, got {source.dtypes or 'none'}")
            rows, columns = source.block_shapes[0]
            if rows * columns * np.dtype(source.dtypes[0]).itemsize > BLOCK_BYTES:
                raise ValueError(f"{path}: blocks of {rows} x {columns} pixels, more than the {BLOCK_BYTES} bytes read")
            value = source.nodata if nodata is None else nodata
            flags = source.mask_flag_enums[0]
            mask = MaskFlags.alpha in flags or (MaskFlags.per_dataset in flags and MaskFlags.nodata not in flags)
            info = _stat(path)
            return Header(
                path, *info, source.crs.to_wkt(), tuple(source.transform)[:6], source.width, source.height,
                tuple(source.dtypes), None if value is None else float(value), mask, tuple(source.descriptions),
                tuple(source.scales), tuple(source.offsets), (rows, columns), _footprint(source, value, mask).wkt,
            )  # fmt: skip


def _footprint(source: Any, nodata: float | None, mask: bool) -> Any:
    """The polygon of valid pixels, in the file's CRS."""
    width, height = source.width, source.height
    corners = [source.transform * corner for corner in ((0, 0), (width, 0), (width, height), (0, height))]
    outline = shapely.Polygon(corners)
    if (nodata is None and not mask) or (width * height > SCANNED_PIXELS and not source.overviews(1)):
        return outline
    shape = min(height, FOOTPRINT_SIDE), min(width, FOOTPRINT_SIDE)
    if mask:
        valid = source.read_masks(1, out_shape=shape) > 0
    else:
        valid = is_data(source.read(1, out_shape=shape), nodata)
    if valid.all():
        return outline
    # Drawn in pixels of the decimated mask: there, a tolerance of one pixel is a number, whatever the transform.
    drawn = rasterio.features.shapes(valid.astype(np.uint8), mask=valid)
    polygons = [shapely.Polygon(geometry["coordinates"][0]) for geometry, _ in drawn]
    # Holes are filled: they are a matter of the pixels' own mask; the polygon bounds where to look.
    polygon = shapely.union_all(polygons)
    if shape != (height, width) or shapely.get_num_coordinates(polygon) > MANY_VERTICES:
        polygon = polygon.simplify(1.0).buffer(1.0, join_style="mitre")
    scale = source.transform * Affine.scale(width / shape[1], height / shape[0])
    a, b, c, d, e, f = tuple(scale)[:6]
    moved = shapely.transform(polygon, lambda xy: np.column_stack([xy @ [a, b] + c, xy @ [d, e] + f]))
    return shapely.intersection(shapely.make_valid(moved), outline)


def is_data(values: np.ndarray, nodata: float | None) -> np.ndarray:
    """Where values are neither `nodata` nor NaN or infinite."""
    valid = np.isfinite(values) if values.dtype.kind == "f" else np.ones(values.shape, bool)
    return valid if nodata is None or np.isnan(nodata) else valid & (values != nodata)


def _stat(path: str) -> tuple[int, int]:
    if path.startswith("/vsizip/"):
        path = path[len("/vsizip/") : path.index(".zip") + 4]
    try:
        info = os.stat(path)
    except OSError:
        return 0, 0  # in memory or remote: nothing to compare by
    return info.st_mtime_ns, info.st_size


def read_headers(
    paths: Sequence[str], nodata: float | None = None, sidecar: str | Path | None = None, errors: str = "raise"
) -> list[Header]:
    """The headers of many files.

    Args:
        nodata: as for :func:`read_header`.
        sidecar: JSON file that remembers headers by path, time and size, so that 10,000 files are opened once.
        errors: ``"raise"`` at the first file that cannot be read, or ``"skip"`` those, with one warning.

    Raises:
        OSError, ValueError: as :func:`read_header`.
    """
    known = {} if sidecar is None else _load(Path(sidecar), nodata)
    headers, broken = [], []
    for path in paths:
        header = known.get(path)
        if header is None or (header.modified, header.bytes) != _stat(path) or header.bytes == 0:
            try:
                header = read_header(path, nodata)
            except (OSError, RasterioError, ValueError) as error:
                if errors == "raise":
                    raise
                broken.append(f"{path} ({error})")
                continue
        headers.append(header)
    if broken:
        warnings.warn(f"{len(broken)} files were left out: {'; '.join(broken[:5])}", stacklevel=3)
    if sidecar is not None and any(known.get(header.path) is not header for header in headers):
        kept = known | {header.path: header for header in headers}
        files = [asdict(header) | {"transform": list(header.transform)} for header in kept.values()]
        write_json(Path(sidecar), {"version": VERSION, "nodata": _text(nodata), "files": [_plain(f) for f in files]})
    return headers


def _plain(record: dict[str, Any]) -> dict[str, Any]:
    return record | {"nodata": _text(record["nodata"])}


def _text(nodata: float | None) -> str | None:
    return None if nodata is None else repr(nodata)  # JSON has no NaN


def _load(path: Path, nodata: float | None) -> dict[str, Header]:
    """Headers in a sidecar; one that is missing, of another version or damaged is made anew."""
    if not path.exists():
        return {}
    try:
        stored = read_json(path, limit=1 << 30)
        if stored["version"] != VERSION or stored["nodata"] != _text(nodata):
            return {}
        headers = [_header(record) for record in stored["files"]]
    except (ValueError, TypeError, KeyError) as error:
        warnings.warn(f"{path} is no index and is made anew ({error})", stacklevel=4)
        return {}
    return {header.path: header for header in headers}


def _header(record: dict[str, Any]) -> Header:
    tuples = {name: tuple(record[name]) for name in ("transform", "dtypes", "names", "scales", "offsets", "block")}
    value = record["nodata"]
    known = {field.name: record[field.name] for field in fields(Header)}
    return Header(**known | tuples | {"nodata": None if value is None else float(value)})
