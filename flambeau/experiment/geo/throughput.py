"""How fast chips are read: aligned, warped on the fly or before, with files kept open or not."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flambeau.data.geo import BatchSampler, Frame, GeoDataset, Query, RandomSampler, RasterDataset
from flambeau.data.geo.grid import Grid
from flambeau.data.geo.prewarp import prewarp
from flambeau.data.geo.projection import as_crs, transformer
from flambeau.data.geo.warp import gdal_warp, source_mesh, torch_warp
from flambeau.data.seeding import derive_generator
from flambeau.ops.bench import interleaved


def read_all(ds: GeoDataset, queries: Sequence[Query]) -> None:
    """Read chips one after the other."""
    for query in queries:
        ds[query]


def chip_rates(
    scenes: Path, regex: str, folder: Path, *, sizes: Sequence[int], chips: int, repeats: int, seed: int
) -> list[dict[str, Any]]:
    """Chips a second of each way to read each size, from one interleaved run; `scenes` lie in two CRSs, T15 and T16."""
    near = RasterDataset(str(scenes / "T15_*.tif"), regex=regex)
    far = RasterDataset(str(scenes / "T16_*.tif"), regex=regex, crs=near.crs, res=near.res)
    warped = RasterDataset(prewarp(far, folder), regex=regex)
    ways: dict[str, GeoDataset] = {
        "native": near,
        "native, files not kept open": RasterDataset(str(scenes / "T15_*.tif"), regex=regex, cache=0),
        "warped by GDAL": far,
        "warped by torch": RasterDataset(
            str(scenes / "T16_*.tif"), regex=regex, crs=near.crs, res=near.res, warp="torch"
        ),
        "warped before": warped,
    }
    rows = []
    for size in sizes:
        count = max(4, chips * sizes[0] ** 2 // size**2)
        stream = partial(derive_generator, seed, "throughput", size)
        here, there = (RandomSampler(ds, size, length=count).draw(count, stream()) for ds in (near, far))
        by_tile = [
            query for batch in BatchSampler(near, size, 8, max(1, count // 8), generator=stream()) for query in batch
        ]
        functions: dict[str, Callable[[], object]] = {
            name: partial(read_all, ds, here if name.startswith("native") else there) for name, ds in ways.items()
        }
        functions["native, batches from one tile"] = partial(read_all, near, by_tile)
        timings = interleaved(functions, repeats)
        numbers = dict.fromkeys(functions, count) | {"native, batches from one tile": len(by_tile)}
        rows.append({"size": size} | {name: numbers[name] / timings[name].wall for name in functions})
    return rows


def index_seconds(paths: Path, regex: str, sidecar: Path, repeats: int) -> tuple[float, float]:
    """Seconds to open an index from a sidecar, and from the files."""
    RasterDataset(paths, regex=regex, sidecar=sidecar)
    functions = {
        "sidecar": partial(RasterDataset, paths, regex=regex, sidecar=sidecar),
        "files": partial(RasterDataset, paths, regex=regex),
    }
    timings = interleaved(functions, repeats)
    return timings["sidecar"].wall, timings["files"].wall


def gpu_warp(device: torch.device, chips: int = 64, bands: int = 13, size: int = 256) -> dict[str, float]:
    """The torch warp on a GPU: bytes a second it moves, that of a copy, and how much faster than GDAL on all cores.

    The comparison with GDAL counts the copy of the chips to the device; the bandwidth does not.
    """
    source, target = as_crs("EPSG:32616"), as_crs("EPSG:32615")
    x, y = transformer(as_crs("EPSG:4326"), target).transform(-90.0, 41.0)
    frame = Grid(target, (0.0, 0.0), 10.0, 10.0).frame((x, y, x + 10 * size, y + 10 * size))
    x, y = transformer(target, source).transform(frame.left, frame.top)
    window = Frame(source, x - 100, y + 100, 10.0, 10.0, size, size)
    mesh = torch.from_numpy(source_mesh(frame, source, window.transform, size)).float()
    images = torch.rand(chips, bands, size, size)
    valid = torch.ones(chips, size, size, dtype=torch.bool)
    held = images.pin_memory()
    there, known, nodes = images.to(device), valid.to(device), mesh.expand(chips, *mesh.shape).to(device)

    def by_gdal() -> None:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            one = partial(gdal_warp, crs=source.to_wkt(), transform=window.transform, frame=frame, mode="bilinear")
            list(pool.map(lambda image: one(image, np.ones((size, size), bool)), images.numpy()))

    functions = {
        "warp": lambda: torch_warp(there, known, nodes, (size, size)),
        "with copy": lambda: torch_warp(held.to(device, non_blocking=True), known, nodes, (size, size)),
        "copy on device": lambda: there.clone(),
        "gdal": by_gdal,
    }
    timings = interleaved(functions, 5, partial(torch.cuda.synchronize, device))
    moved = 2 * images.numel() * 4
    return {
        "warp": moved / timings["warp"].wall,
        "copy": moved / timings["copy on device"].wall,
        "speedup": timings["gdal"].wall / timings["with copy"].wall,
    }
