"""Scenes warped once to a dataset's grid and kept, so that later reads are of aligned pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from flambeau.data.geo.grid import Query
from flambeau.data.geo.raster import RasterDataset
from flambeau.data.geo.world import write_geotiff


def prewarp(ds: RasterDataset, folder: str | Path, *, dtype: str = "uint16") -> Path:
    """Write every scene of a dataset, on the dataset's grid and with its bands, as a GeoTIFF of the scene's name.

    Args:
        dtype: of the files; whole numbers are rounded, and 0, which stands for missing pixels, becomes 1.

    Raises:
        ValueError: values that do not fit the dtype.
    """
    folder = Path(folder)
    limits = np.iinfo(dtype) if np.dtype(dtype).kind in "iu" else None
    for row in range(len(ds.index)):
        frame = ds.grid.frame_at(*_covering(ds, row))
        sample = ds.take([row])[Query(frame.bounds)]
        values, valid = sample[ds.kind].reshape(-1, frame.height, frame.width).numpy(), sample["valid"].numpy()
        if limits is not None:
            values = np.where(valid, np.maximum(np.rint(values), 1), 0)
            if values.min() < limits.min or values.max() > limits.max:
                raise ValueError(f"dtype {dtype} does not hold {values.min()} to {values.max()}")
        path = folder / f"{Path(ds.index.rows[row].files[0].path).stem}.tif"
        write_geotiff(path, values.astype(dtype), frame, nodata=0 if limits is not None else None, names=ds.bands)
    return folder


def _covering(ds: RasterDataset, row: int) -> tuple[int, int, int, int]:
    left, up, right, down = ds.grid.cells(ds.index.geometry[row].bounds, cover=True)
    return left, up, right - left, down - up
