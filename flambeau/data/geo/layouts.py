"""Published datasets by name: how they lie on disk is data, in ``layouts.toml``."""

from __future__ import annotations

import difflib
import re
import tomllib
import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
from jaxtyping import Float, Int
from rasterio.errors import NotGeoreferencedWarning, RasterioIOError
from torch import Tensor
from torch.utils.data import Dataset

from flambeau.data.geo.dataset import Sample
from flambeau.data.geo.raster import RasterDataset

MAX_PICTURE = 1 << 28  # values of one picture


@cache
def layouts() -> dict[str, dict[str, Any]]:
    """Every known layout."""
    return tomllib.loads(Path(__file__).with_name("layouts.toml").read_text(encoding="utf-8"))


def open_layout(name: str, folder: str | Path, *, split: str | None = None, **options: Any) -> Dataset:
    """A published dataset from the folder it was unpacked into.

    Returns:
        A :class:`~flambeau.data.geo.raster.RasterDataset` for whole scenes (`options` are its own), a
        :class:`ClassFolders` for pictures of classes, or a :class:`PairedFiles` for pictures with dense labels.

    Raises:
        ValueError: no such layout, with the nearest, or no such split.
        FileNotFoundError: the folder does not have it; the message says what was looked for.
    """
    if name not in layouts():
        near = difflib.get_close_matches(name, layouts(), 3, 0.3) or list(layouts())
        raise ValueError(f"no layout {name!r} (did you mean {', '.join(near)}?)")
    layout = layouts()[name]
    if split not in (None, *layout.get("splits", ())):
        raise ValueError(f"split must be one of {layout.get('splits', [])}, got {split!r}")
    if layout["kind"] == "scenes":
        known: dict[str, Any] = {"regex": layout["regex"], "date_format": layout["date_format"]}
        known |= {"kind": "mask"} if layout.get("labels") else {}
        known |= {"nodata": layout["nodata"]} if "nodata" in layout else {}
        known |= {"band_names": layout["bands"]} if "bands" in layout else {}
        return RasterDataset(folder, **known | options)
    if options:
        raise TypeError(f"{name} takes no further options, got {', '.join(options)}")
    if layout["kind"] == "classes":
        part = split or (layout["splits"][0] if "splits" in layout else "")
        root = Path(folder) / layout["root"].format(split=part)
        return ClassFolders(root, layout["classes"], layout["bands"], layout["suffix"])
    return PairedFiles(
        folder, layout["image"], layout["mask"], layout["bands"], layout["classes"], layout.get("colours")
    )


def statistics(name: str) -> tuple[Float[Tensor, " bands"], Float[Tensor, " bands"]]:
    """Published mean and deviation of a layout's bands.

    Raises:
        ValueError: none are known; compute them with :func:`flambeau.data.geo.statistics.band_statistics`.
    """
    layout = layouts().get(name, {})
    if "mean" not in layout:
        raise ValueError(f"no statistics of {name!r} are known; band_statistics computes them")
    return torch.tensor(layout["mean"]), torch.tensor(layout["std"])


class ClassFolders(Dataset):
    """A folder a class of small rasters or pictures: ``image`` (bands, height, width) float32, ``label``.

    Raises:
        FileNotFoundError: no pictures in any of the class folders.
    """

    def __init__(self, root: Path, classes: Sequence[str], bands: Sequence[str], suffix: str):
        self.classes, self.bands = tuple(classes), tuple(bands)
        self.files = [
            (str(path), label)
            for label, name in enumerate(classes)
            for path in sorted((root / name).glob("*"))
            if path.suffix.lower() == suffix
        ]
        if not self.files:
            raise FileNotFoundError(f"no files matched {root}/{{{','.join(classes[:3])},...}}/*{suffix}")

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, number: int) -> Sample:
        path, label = self.files[number]
        return {
            "image": _read(path, len(self.bands), np.float32),
            "label": torch.tensor(label),
            "meta": {"files": [path]},
        }


class PairedFiles(Dataset):
    """Pictures and labels of equal names: ``image`` float32, ``mask`` (height, width) int64, ``valid``.

    Labels drawn in colour are valid where the colour is one of the classes'.

    Raises:
        FileNotFoundError: no pair.
    """

    def __init__(
        self, folder: str | Path, image: str, mask: str, bands: Sequence[str], classes: Sequence[str],
        colours: Sequence[Sequence[int]] | None = None,
    ):  # fmt: skip
        self.bands, self.classes, self.colours = tuple(bands), tuple(classes), colours
        found: list[dict[str, str]] = [{}, {}]
        for path in sorted(Path(folder).rglob("*")):
            for files, pattern in zip(found, (image, mask)):
                if match := re.match(pattern, path.relative_to(folder).as_posix()):
                    files[match["name"]] = str(path)
        self.files = [(found[0][name], found[1][name]) for name in sorted(found[0].keys() & found[1].keys())]
        if not self.files:
            raise FileNotFoundError(f"no pairs matched {image} and {mask} in {folder}")

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, number: int) -> Sample:
        picture, drawn = self.files[number]
        image = _read(picture, len(self.bands), np.float32)
        labels = _read(drawn, 1 if self.colours is None else 3, np.int64)
        mask = labels[0] if self.colours is None else _from_colours(labels, self.colours)
        if mask.shape != image.shape[1:]:
            raise ValueError(f"{drawn} is {tuple(mask.shape)}, its picture {tuple(image.shape[1:])}")
        valid = (mask >= 0) & (mask < len(self.classes))
        return {"image": image, "mask": mask * valid, "valid": valid, "meta": {"files": [picture, drawn]}}


def _from_colours(
    drawn: Int[Tensor, "3 height width"], colours: Sequence[Sequence[int]]
) -> Int[Tensor, "height width"]:
    """The place of each pixel's colour among the classes', -1 for any other."""
    mask = torch.full(drawn.shape[1:], -1)
    for label, colour in enumerate(colours):
        mask[(drawn == torch.tensor(colour)[:, None, None]).all(0)] = label
    return mask


def _read(path: str, bands: int, dtype: Any) -> Tensor:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            with rasterio.open(path) as source:
                if source.count < bands or source.width * source.height * bands > MAX_PICTURE:
                    raise ValueError(
                        f"{path}: {source.count} bands of {source.height} x {source.width} pixels, expected {bands} "
                        f"bands and at most {MAX_PICTURE} values"
                    )
                return torch.from_numpy(source.read(list(range(1, bands + 1))).astype(dtype))
    except RasterioIOError as error:
        raise OSError(f"{path}: cannot be read ({error})") from error
