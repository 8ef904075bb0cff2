"""STAC items as a layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import numpy as np
import shapely

from flambeau.data.geo.header import read_headers
from flambeau.data.geo.raster import BandPlaces, RasterDataset, Scene
from flambeau.data.geo.times import END, START, as_time
from flambeau.extras import require
from flambeau.files import read_json

MAX_ITEMS = 100_000
SCHEMES = {"https": "/vsicurl/", "http": "/vsicurl/", "s3": "/vsis3/"}


class StacDataset(RasterDataset):
    """The items of a STAC catalogue as scenes, one band (or more) an asset.

    Args:
        items: a pystac ``ItemCollection``, a list of items, or a JSON file (or its content) of a FeatureCollection.
        assets: keys of the assets to read; each one's bands follow each other. An asset of one band has its key as the
            name of it, one of several ``key:1``, ``key:2`` and so on.
        remote: whether assets at http, https and s3 addresses may be read; else a catalogue that names them is refused.
            Local assets must lie under the folder of the JSON file, or `root`.
        root: folder that local and relative addresses must lie under; any when neither it nor a file is given.
        nodata: value of missing pixels, in place of the files' own.
        options: `crs`, `res`, `kind`, `resampling`, `cache`, `warp`, `merge`, `stack`, `errors`, `dtype` and `snap`, as
            for :class:`RasterDataset`.

    Raises:
        ValueError: no items, over 100,000 of them, an item without time or one of the assets, or an address that is not
            allowed.
        ModuleNotFoundError: pystac is not installed.
    """

    def __init__(
        self,
        items: Any,
        assets: Sequence[str],
        *,
        remote: bool = False,
        root: str | Path | None = None,
        nodata: float | None = None,
        **options: Any,
    ):
        pystac = require("pystac", "geo")
        if isinstance(items, (str, Path)):
            root = Path(items).parent if root is None else root
            items = read_json(Path(items))
        if isinstance(items, Mapping):
            features = items.get("features", [])
            items = [pystac.Item.from_dict(dict(item)) for item in features[: MAX_ITEMS + 1]]
        items = list(items)
        if not 1 <= len(items) <= MAX_ITEMS:
            raise ValueError(f"items must be 1 to {MAX_ITEMS}, got {len(items)}")
        if not assets:
            raise ValueError("assets must name at least one asset")
        addresses = [[_address(item, key, remote, root) for key in assets] for item in items]
        flat = list(dict.fromkeys(path for paths in addresses for path in paths))
        headers = {h.path: h for h in read_headers(flat, nodata, errors=options.get("errors", "raise"))}
        scenes = []
        for item, paths in zip(items, addresses):
            if any(path not in headers for path in paths):
                continue
            files = tuple(headers[path] for path in paths)
            bands: dict[str, tuple[int, int]] = {}
            for number, (key, header) in enumerate(zip(assets, files)):
                count = len(header.dtypes)
                bands |= {key if count == 1 else f"{key}:{band}": (number, band) for band in range(1, count + 1)}
            scenes.append(Scene(files, BandPlaces(bands), *_interval(item), shapely.from_wkt(files[0].footprint)))
        if not scenes:
            raise OSError("none of the items can be read")
        self._open(scenes, None, **options)


def _interval(item: Any) -> tuple[np.datetime64, np.datetime64]:
    start, stop = item.common_metadata.start_datetime, item.common_metadata.end_datetime
    if start is not None or stop is not None:
        return START if start is None else as_time(start), END if stop is None else as_time(stop)
    if item.datetime is None:
        raise ValueError(f"item {item.id!r} has no datetime")
    return as_time(item.datetime), as_time(item.datetime)


def _address(item: Any, key: str, remote: bool, root: str | Path | None) -> str:
    """Where rasterio finds an asset. A catalogue is untrusted: GDAL's own prefixes and foreign folders are refused."""
    if key not in item.assets:
        raise ValueError(f"item {item.id!r} has no asset {key!r}; it has {', '.join(item.assets)}")
    href = item.assets[key].href
    parsed = urlparse(href)
    if parsed.scheme in SCHEMES:
        if not remote:
            raise ValueError(f"item {item.id!r}: {href} is remote; pass remote=True to read it")
        return SCHEMES[parsed.scheme] + (f"{parsed.netloc}{parsed.path}" if parsed.scheme == "s3" else href)
    path = Path(unquote(parsed.path) if parsed.scheme == "file" else href)
    if parsed.scheme not in ("", "file") or href.startswith("/vsi"):
        raise ValueError(
            f"item {item.id!r}: the address {href!r} is not allowed; expected a path, file:, https: or s3:"
        )
    if root is not None:
        path = (Path(root) / path).resolve()
        if not path.is_relative_to(Path(root).resolve()):
            raise ValueError(f"item {item.id!r}: {href!r} lies outside {root}")
    return str(path)
