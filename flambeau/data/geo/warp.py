"""Reprojection as one sampling of a native window: by torch, on any device, or by GDAL."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyproj
import rasterio.warp
import torch
from affine import Affine
from jaxtyping import Bool, Float
from rasterio.enums import Resampling
from torch import Tensor
from torch.nn import functional as F

from flambeau.data.geo.grid import Frame
from flambeau.data.geo.projection import rasterio_crs, same_crs, transformer

TOLERANCE = 0.05  # source pixels by which an interpolated position may be wrong
MESH = 32  # pixels between the nodes of the first mesh tried


def source_mesh(
    frame: Frame, crs: pyproj.CRS, transform: Affine, width: int, tolerance: float = TOLERANCE
) -> Float[np.ndarray, "rows columns 2"]:
    """Where a frame's pixel centres lie in a source raster: its column and row at the nodes of a coarse mesh.

    The nodes are evenly spaced from the first to the last pixel centre of the frame. The mesh is halved until the
    exact position in the middle of every cell differs by at most `tolerance` pixels from the interpolated one. A
    position is in units of source pixels, 0 being the outer edge of the first; NaN where the projection has none.

    Args:
        crs, transform, width: of the source raster.
    """
    middle = transform.c + transform.a * width / 2
    step = MESH
    while True:
        rows = np.linspace(0, frame.height - 1, max(2, math.ceil((frame.height - 1) / step) + 1))
        columns = np.linspace(0, frame.width - 1, max(2, math.ceil((frame.width - 1) / step) + 1))
        mesh = _positions(frame, crs, transform, middle, rows, columns)
        if step == 1 or same_crs(frame.crs, crs):
            return mesh
        between = (rows[1:] + rows[:-1]) / 2, (columns[1:] + columns[:-1]) / 2
        exact = _positions(frame, crs, transform, middle, *between)
        guess = (mesh[1:, 1:] + mesh[:-1, 1:] + mesh[1:, :-1] + mesh[:-1, :-1]) / 4
        error = np.abs(exact - guess)
        if not (error > tolerance).any():  # NaN, outside the projection, is not an error
            return mesh
        step //= 2


def mesh_ratio(mesh: Float[np.ndarray, "rows columns 2"], frame: Frame) -> tuple[float, float]:
    """Source pixels to a pixel of the frame, along its x and y: the median over the mesh, 1 for a single pixel."""
    ratios = []
    for axis, pixels in ((1, frame.width), (0, frame.height)):
        steps = np.linalg.norm(np.diff(mesh, axis=axis), axis=-1) * (mesh.shape[axis] - 1)
        known = steps[np.isfinite(steps)]
        ratios.append(float(np.median(known)) / (pixels - 1) if pixels > 1 and known.size else 1.0)
    return max(ratios[0], 1e-6), max(ratios[1], 1e-6)


def _positions(
    frame: Frame, crs: pyproj.CRS, transform: Affine, middle: float, rows: np.ndarray, columns: np.ndarray
) -> Float[np.ndarray, "rows columns 2"]:
    x, y = np.meshgrid(frame.left + (columns + 0.5) * frame.res_x, frame.top - (rows + 0.5) * frame.res_y)
    if not same_crs(frame.crs, crs):
        x, y = transformer(frame.crs, crs).transform(x, y)
        if crs.is_geographic:  # a raster may run beyond 180 degrees: take the turn that is nearest to its middle
            x = np.mod(x - middle + 180.0, 360.0) + middle - 180.0
    a, b, c, d, e, f = tuple(~transform)[:6]
    at = np.stack([a * x + b * y + c, d * x + e * y + f], axis=-1)
    at[~np.isfinite(at)] = np.nan
    return at


def torch_warp(
    image: Float[Tensor, "batch channels rows columns"],
    valid: Bool[Tensor, "batch rows columns"],
    mesh: Float[Tensor, "batch nodes_y nodes_x 2"],
    size: tuple[int, int],
    mode: str = "bilinear",
) -> tuple[Float[Tensor, "batch channels height width"], Bool[Tensor, "batch height width"]]:
    """Sample windows at the positions of a mesh (see :func:`source_mesh`), interpolated to `size` (height, width).

    A pixel is valid where its centre falls on a valid source pixel. Invalid source pixels take no part in the kernel,
    whose weights are scaled up to one over the valid ones; invalid results are 0. Runs on the tensors' device.

    Args:
        mode: ``"bilinear"``, ``"nearest"`` or ``"bicubic"``. When shrinking, average the source first.

    Raises:
        ValueError: an unknown mode.
    """
    if mode not in ("bilinear", "nearest", "bicubic"):
        raise ValueError(f"mode must be 'bilinear', 'nearest' or 'bicubic', got {mode!r}")
    height, width = size
    rows, columns = image.shape[-2:]
    nodes = mesh.to(image.dtype).permute(0, 3, 1, 2)
    positions = F.interpolate(nodes, size=size, mode="bilinear", align_corners=True).permute(0, 2, 3, 1)
    extent = torch.tensor([columns, rows], dtype=image.dtype, device=image.device)
    positions = torch.where(positions.isnan(), -2 * extent, positions)
    grid = positions * (2 / extent) - 1
    weight = valid.unsqueeze(1).to(image.dtype)
    center = F.grid_sample(weight, grid, mode="nearest", padding_mode="zeros", align_corners=False)
    if mode == "nearest":
        sampled = F.grid_sample(image * weight, grid, mode=mode, padding_mode="zeros", align_corners=False)
    elif bool(valid.all()):
        sampled = F.grid_sample(image, grid, mode=mode, padding_mode="border", align_corners=False)
    else:
        # The kernel over the edge repeats the edge, as it does above; what it repeats may itself be invalid.
        both = torch.cat([image * weight, weight], 1)
        both = F.grid_sample(both, grid, mode=mode, padding_mode="border", align_corners=False)
        total = both[:, -1:]
        sampled = both[:, :-1] / torch.where(total.abs() < 1e-6, torch.ones_like(total), total)
    inside = (center > 0.5) & (grid.abs() <= 1).all(-1).unsqueeze(1)
    return torch.where(inside, sampled, torch.zeros_like(sampled)), inside.squeeze(1)


def gdal_warp(
    image: Float[np.ndarray, "channels rows columns"],
    valid: Bool[np.ndarray, "rows columns"],
    crs: str,
    transform: Affine,
    frame: Frame,
    mode: str,
    ratio: tuple[float, float] = (1.0, 1.0),
) -> tuple[Float[np.ndarray, "channels height width"], Bool[np.ndarray, "height width"]]:
    """The same by GDAL's warper, with any of its kernels. Its valid pixels are those with a value.

    ratio: source pixels to a pixel of the frame along x and y, by which GDAL widens its kernel. It would guess
    them from the boxes of the windows otherwise, and blur whatever is a little rotated.
    """
    source = np.where(valid, image, np.nan)
    target = np.full((len(image), frame.height, frame.width), np.nan, dtype=image.dtype)
    rasterio.warp.reproject(
        source, target, src_transform=transform, src_crs=rasterio_crs(crs), src_nodata=np.nan, dst_nodata=np.nan,
        dst_transform=frame.transform, dst_crs=rasterio_crs(frame.crs.to_wkt()), resampling=Resampling[_GDAL[mode]],
        num_threads=1, XSCALE=1 / ratio[0], YSCALE=1 / ratio[1],
    )  # fmt: skip
    known = np.asarray(np.isfinite(target).all(0))
    target[:, ~known] = 0
    return target, known


_GDAL: dict[str, Any] = {
    "nearest": "nearest",
    "bilinear": "bilinear",
    "bicubic": "cubic",
    "average": "average",
    "mode": "mode",
}
KERNELS = tuple(_GDAL)
