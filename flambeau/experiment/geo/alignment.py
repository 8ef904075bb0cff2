"""Whether labels drawn through a join lie where the landscape has them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import rasterio
from rasterio.enums import Resampling
from rasterio.windows import from_bounds
from scipy.ndimage import distance_transform_edt

from flambeau.data.geo import Frame, GeoDataset, Query, World
from flambeau.data.geo.projection import as_crs, transform_bounds


def label_agreement(
    world: World, joined: GeoDataset, labels: str, queries: Sequence[Query], margin: float
) -> tuple[float, float]:
    """Share of pixels, at least `margin` pixels from where the class changes, whose label is the landscape's.

    Returns:
        Of the join's labels, and of those cut out of the label file by the chip's bounds and stretched to its size.
    """
    right, wrong_way, total = 0, 0, 0
    for query in queries:
        sample, frame = joined[query], joined.frame(query)
        truth, kept = _sure(world, frame, margin)
        kept = kept & sample["valid"].numpy()
        cropped = _crop_by_bounds(labels, frame)
        right += int((sample["mask"].numpy()[kept] == truth[kept]).sum())
        wrong_way += int((cropped[kept] == truth[kept]).sum())
        total += int(kept.sum())
    if total == 0:
        raise ValueError("queries hold no pixel away from the classes' edges")
    return right / total, wrong_way / total


def _sure(world: World, frame: Frame, margin: float) -> tuple[np.ndarray, np.ndarray]:
    """Classes from 1 of a frame, and where they do not change within `margin` pixels, looked at beyond its edges."""
    pad = int(np.ceil(margin)) + 1
    wider = Frame(
        frame.crs, frame.left - pad * frame.res_x, frame.top + pad * frame.res_y, frame.res_x, frame.res_y,
        frame.width + 2 * pad, frame.height + 2 * pad,
    )  # fmt: skip
    truth = world.truth_on(wider)
    edge = np.zeros(truth.shape, bool)
    for axis in (0, 1):
        change = np.diff(truth, axis=axis) != 0
        before, after = [slice(None)] * 2, [slice(None)] * 2
        before[axis], after[axis] = slice(None, -1), slice(1, None)
        edge[tuple(before)] |= change
        edge[tuple(after)] |= change
    far = distance_transform_edt(~edge) >= margin if edge.any() else ~edge
    inner = slice(pad, -pad), slice(pad, -pad)
    return truth[inner].astype(np.int64) + 1, far[inner]


def _crop_by_bounds(path: str, frame: Frame) -> np.ndarray:
    """What many loaders do: the window of the chip's box in the label file's CRS, stretched to the chip's shape."""
    with rasterio.open(path) as source:
        box = transform_bounds(frame.bounds, frame.crs, as_crs(source.crs))
        window = from_bounds(*box, transform=source.transform)
        shape = (frame.height, frame.width)
        return source.read(1, window=window, out_shape=shape, resampling=Resampling.nearest, boundless=True)
