"""One raster file onto one frame: read as it is where the pixels coincide, warped where they do not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from affine import Affine
from jaxtyping import Bool, Shaped
from rasterio.enums import Resampling
from rasterio.windows import Window

from flambeau.data.geo.grid import Frame
from flambeau.data.geo.header import Header, is_data
from flambeau.data.geo.projection import same_crs
from flambeau.data.geo.warp import gdal_warp, mesh_ratio, source_mesh, torch_warp

MAX_VALUES = 1 << 28  # values held for one read; a query that needs more is refused
COINCIDE = 1e-3  # pixels by which the edges of aligned grids may differ

Pixels = tuple[Shaped[np.ndarray, "bands height width"], Bool[np.ndarray, "height width"]]


def read_onto(
    source: Any, header: Header, bands: Sequence[int], frame: Frame, *, kernel: str, warp: str
) -> Pixels | None:
    """Bands (counted from 1) of an open file on the pixels of a frame, and where they are valid; None if apart.

    Aligned pixels keep their dtype and every bit. Others are warped as float32, or as float64 when the file's values
    need it (integers of 32 bits, float64).

    Args:
        kernel: ``"nearest"``, ``"bilinear"``, ``"bicubic"``, and with GDAL ``"average"`` and ``"mode"``.
        warp: ``"gdal"`` or ``"torch"``.

    Raises:
        OSError: the file is damaged.
        ValueError: more than 2^28 values would be read.
    """
    offset = aligned_offset(header, frame)
    if offset is not None:
        return _read_aligned(source, header, bands, frame, offset)
    mesh = source_mesh(frame, header.projection, header.affine, header.width)
    known = mesh[np.isfinite(mesh).all(-1)]
    if len(known) == 0:
        return None
    low, high = known.min(0), known.max(0)
    ratio = mesh_ratio(mesh, frame)
    shrink = min(ratio)
    # Whole blocks are averaged first, and the kernel shrinks what is left; of labels, one in four may be passed over.
    factor = max(1, int(shrink / {"nearest": 4, "mode": math.inf}.get(kernel, 1)))
    margin = 3 * max(1, math.ceil(max(ratio)))  # the kernel reaches two pixels out
    left, up = (max(0, math.floor(value) - margin) // factor * factor for value in low)
    right, down = (min(math.ceil(value) + margin, size) for value, size in zip(high, (header.width, header.height)))
    if right <= left or down <= up:
        return None
    factor = min(factor, right - left, down - up)
    right, down = left + (right - left) // factor * factor, up + (down - up) // factor * factor
    values, valid = _read_window(source, header, bands, (left, up, right - left, down - up), factor, kernel)
    transform = header.affine * Affine.translation(left, up) * Affine.scale(factor)
    wide = any(
        np.dtype(header.dtypes[band - 1]).itemsize > 2 and header.dtypes[band - 1] != "float32" for band in bands
    )
    values = values.astype(np.float64 if wide else np.float32)
    values[:, ~valid] = 0
    if warp == "gdal":
        return gdal_warp(values, valid, header.crs, transform, frame, kernel, (ratio[0] / factor, ratio[1] / factor))
    nodes = torch.from_numpy((mesh - (left, up)) / factor)
    image, inside = torch_warp(
        torch.from_numpy(values)[None], torch.from_numpy(valid)[None], nodes[None], (frame.height, frame.width), kernel
    )
    return image[0].numpy(), inside[0].numpy()


def aligned_offset(header: Header, frame: Frame) -> tuple[int, int] | None:
    """Column and row of a frame's first pixel in a file whose pixels coincide with the frame's; None if they do not."""
    a, b, c, d, e, f = header.transform
    if b != 0 or d != 0 or a <= 0 or e >= 0:
        return None
    drift = max(abs(a / frame.res_x - 1) * frame.width, abs(-e / frame.res_y - 1) * frame.height)
    column, row = (frame.left - c) / a, (f - frame.top) / -e
    off = max(abs(column - round(column)), abs(row - round(row)))
    if off > COINCIDE or drift > COINCIDE or not same_crs(frame.crs, header.projection):
        return None
    return round(column), round(row)


def _read_aligned(
    source: Any, header: Header, bands: Sequence[int], frame: Frame, offset: tuple[int, int]
) -> Pixels | None:
    left, up = (max(0, value) for value in offset)
    right = min(header.width, offset[0] + frame.width)
    down = min(header.height, offset[1] + frame.height)
    if right <= left or down <= up:
        return None
    values, valid = _read_window(source, header, bands, (left, up, right - left, down - up), 1, "nearest")
    if values.shape[1:] == (frame.height, frame.width):
        return values, valid
    whole = np.zeros((len(values), frame.height, frame.width), values.dtype)
    known = np.zeros((frame.height, frame.width), bool)
    place = slice(up - offset[1], down - offset[1]), slice(left - offset[0], right - offset[0])
    whole[:, place[0], place[1]], known[place] = values, valid
    return whole, known


def _read_window(
    source: Any, header: Header, bands: Sequence[int], box: tuple[int, int, int, int], factor: int, kernel: str
) -> Pixels:
    """A native window of whole blocks of `factor` pixels, made one each; where any band is missing, the pixel is."""
    left, up, width, height = box
    shape = height // factor, width // factor
    if len(bands) * shape[0] * shape[1] > MAX_VALUES:
        raise ValueError(f"{header.path}: {len(bands)} x {shape[0]} x {shape[1]} values in one read, over {MAX_VALUES}")
    window, method = Window(left, up, width, height), Resampling.nearest if kernel == "nearest" else Resampling.average
    values = source.read(list(bands), window=window, out_shape=(len(bands), *shape), resampling=method)
    valid = np.asarray(is_data(values, header.nodata).all(0))
    if header.mask:
        valid &= source.read_masks(bands[0], window=window, out_shape=shape) > 0
    return values, valid
