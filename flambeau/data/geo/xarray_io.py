"""To and from xarray."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.io import MemoryFile

from flambeau.data.geo.dataset import GeoDataset
from flambeau.data.geo.grid import Query
from flambeau.data.geo.projection import as_crs, rasterio_crs
from flambeau.data.geo.raster import RasterDataset
from flambeau.extras import require


def to_xarray(ds: GeoDataset, key: Any) -> Any:
    """A query as an ``xarray.Dataset``: image and mask with NaN (or 0) where not valid, ``valid``, x, y, bands, CRS.

    Raises:
        ModuleNotFoundError: xarray or rioxarray is not installed.
        IndexError: as for ``ds[key]``.
    """
    xarray, _ = require("xarray", "geo"), require("rioxarray", "geo")
    query = Query.of(key)
    sample, frame = ds[query], ds.frame(query)
    x, y = frame.centers()
    times = ["time"] if "time" in sample else []
    names = {"valid": [*times, "y", "x"], "image": [*times, "band", "y", "x"], "mask": [*times, "y", "x"]}
    coordinates: dict[str, Any] = {"x": x, "y": y}
    if times:
        coordinates["time"] = sample["time"][:, 0].numpy().astype("datetime64[us]").astype("datetime64[ns]")
    variables = {}
    for name in ("image", "mask", "valid"):
        if name in sample:
            values = sample[name].numpy()
            axes = names[name] if values.ndim == len(names[name]) else [*times, "label", "y", "x"]
            if name == "image":
                values = np.where(np.expand_dims(sample["valid"].numpy(), -3), values, np.nan)
                if len(ds.bands) == values.shape[-3]:
                    coordinates["band"] = list(ds.bands)
            variables[name] = (axes, values)
    out = xarray.Dataset(variables, coordinates, attrs={"files": sample["meta"]["files"]})
    return out.rio.write_crs(frame.crs.to_wkt()).rio.write_transform(frame.transform)


def from_xarray(array: Any, path: str | Path | None = None, **options: Any) -> RasterDataset:
    """A dataset of an ``xarray.DataArray`` (y, x) or (band, y, x) that has a CRS (``array.rio.crs``).

    Args:
        path: GeoTIFF that is written for it; without one, the file is in memory, which processes started by spawn do
            not share.
        options: of :class:`RasterDataset`.

    Raises:
        ModuleNotFoundError: rioxarray is not installed.
        ValueError: no CRS, or other axes.
    """
    require("rioxarray", "geo")
    if array.rio.crs is None:
        raise ValueError("array has no CRS; give it one with array.rio.write_crs('EPSG:...')")
    if array.ndim == 2:
        array = array.expand_dims("band")
    if array.ndim != 3 or array.dims[-2:] != (array.rio.y_dim, array.rio.x_dim):
        raise ValueError(f"array must be (y, x) or (band, y, x), got {array.dims}")
    names = [str(name) for name in array[array.dims[0]].values] if array.dims[0] in array.coords else None
    values, transform = np.asarray(array.values), array.rio.transform()
    target = f"/vsimem/{uuid.uuid4().hex}.tif" if path is None else str(path)
    memory = MemoryFile(filename=target.removeprefix("/vsimem/")) if path is None else None
    profile: dict[str, Any] = dict(
        driver="GTiff", width=values.shape[2], height=values.shape[1], count=values.shape[0], dtype=values.dtype,
        crs=rasterio_crs(as_crs(array.rio.crs).to_wkt()), transform=transform, nodata=array.rio.nodata,
    )  # fmt: skip
    with rasterio.open(target, "w", **profile) if memory is None else memory.open(**profile) as file:
        file.write(values)
        for number, name in enumerate(names or [], 1):
            file.set_band_description(number, name)
    ds = RasterDataset([target if memory is None else memory.name], **options)
    ds.memory = memory  # the file lives as long as the dataset
    return ds
