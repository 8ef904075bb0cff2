"""Pictures of maps and of how fast they are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from flambeau.data.geo import GeoDataset, MapSampler, Query, RasterDataset, World
from flambeau.deployment.predict_map import predict_map
from flambeau.experiment.geo.segmentation import ChipSplit

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def map_figure(
    picture: Float[np.ndarray, "3 height width"],
    maps: Mapping[str, Int[np.ndarray, "height width"]],
    classes: Sequence[str],
    colours: Sequence[Sequence[int]],
) -> Figure:
    """A picture beside maps of classes from 0 (-1: nothing known), with a legend."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    height, width = picture.shape[1:]
    side = 2.6 if height > width else 3.2
    figure = Figure(figsize=(side * (len(maps) + 1), side * height / width + 0.8))
    axes = figure.subplots(1, len(maps) + 1, squeeze=False)[0]
    seen = picture[:, (picture > 0).all(0)]
    low, high = np.percentile(seen, [2, 98], axis=1) if seen.size else (np.zeros(3), np.ones(3))
    stretched = np.clip((picture - low[:, None, None]) / np.maximum(high - low, 1e-6)[:, None, None], 0, 1)
    axes[0].imshow(np.moveaxis(stretched, 0, -1), interpolation="nearest")
    axes[0].set_title("image", fontsize=9)
    palette = np.array([*colours, (255, 255, 255)], np.uint8)
    for axis, (name, labels) in zip(axes[1:], maps.items()):
        axis.imshow(palette[labels], interpolation="nearest")
        axis.set_title(name, fontsize=9)
    for axis in axes:
        axis.set_axis_off()
    handles = [Patch(color=np.array(colour) / 255, label=name) for name, colour in zip(classes, colours)]
    figure.legend(handles=handles[:12], loc="lower center", ncol=min(7, len(handles)), fontsize=8, frameon=False)
    return figure


def rate_figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Chips a second of each way to read, against the size of a chip."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.6))
    axis = figure.subplots()
    sizes = [row["size"] for row in rows]
    for name in rows[0]:
        if name != "size":
            axis.plot(sizes, [row[name] for row in rows], marker="o", label=name)
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_xticks(sizes, [str(size) for size in sizes])
    axis.set_xlabel("side of a chip, pixels")
    axis.set_ylabel("chips a second, one process")
    axis.legend(fontsize=7, frameon=False)
    figure.tight_layout()
    return figure


def draw_maps(
    run: Any,
    seen: GeoDataset,
    networks: Mapping[str, Any],
    split: ChipSplit,
    names: Sequence[str],
    colours: Sequence[Sequence[int]],
    truth: World | None = None,
) -> None:
    """Predict the date in the middle of a dataset with each network, to ``map_NAME.tif``, and show the maps."""
    middle = len(seen.index) // 2
    shown = seen.within(start=seen.index.start[middle], stop=seen.index.stop[middle])
    frame, maps, size = shown.frame(Query()), {}, 2 * split.train.image.shape[-1]
    frame_query = Query(frame.bounds)
    if truth is not None:
        places = np.array([names.index(name) if name in names else -1 for name in truth.classes])
        maps["landscape"] = places[truth.truth_on(frame)]
    palette = {number: (*map(int, colour), 255) for number, colour in enumerate(colours)}
    for name, network in networks.items():
        path = run.folder / f"map_{name.replace(' ', '_')}.tif"
        predict_map(
            network, shown, MapSampler(shown, size, size * 3 // 4), path, transform=split.normalize, colours=palette,
            device=run.device, progress=run.progress,
        )  # fmt: skip
        said = RasterDataset(path, kind="mask").on(shown.grid)[frame_query]
        maps[name] = np.where(said["valid"].numpy(), said["mask"].numpy(), -1)
    image = shown[frame_query]["image"].numpy()
    step = max(1, max(image.shape) // 800)
    visible = [3, 2, 1] if len(image) > 3 else [min(band, len(image) - 1) for band in range(3)]
    small = {name: values[::step, ::step] for name, values in maps.items()}
    run.figure("map", map_figure(image[visible][:, ::step, ::step], small, names, colours))


def colour_wheel(count: int) -> list[tuple[int, ...]]:
    """So many colours, twenty of them different."""
    from matplotlib import colormaps

    return [tuple(int(255 * part) for part in colormaps["tab20"](number % 20)[:3]) for number in range(count)]
