"""Spectral indices, joint augmentation of images with all their labels, and stretches."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from flambeau.data.geo.dataset import Sample
from flambeau.data.geo.sensors import common_names

SPATIAL = ("image", "mask", "valid", "instances")  # what has its last two axes in space


@cache
def indices() -> dict[str, dict[str, str]]:
    """Every known spectral index and the common names of its bands."""
    return tomllib.loads(Path(__file__).with_name("indices.toml").read_text(encoding="utf-8"))


class AppendIndex:
    """Append a spectral index, (a - b) / (a + b), or with three bands (a - (b + c)) / (a + (b + c)), as a last band.

    Where the sum is 0, the index is 0 and the pixel is no longer valid. Works on samples and batches.

    Args:
        name: ``"ndvi"``, ``"gndvi"``, ``"ndre"``, ``"ndwi"``, ``"mndwi"``, ``"ndmi"``, ``"ndbi"``, ``"nbr"``,
            ``"ndsi"``, ``"swi"``, ``"gbndvi"``, ``"grndvi"`` or ``"rbndvi"``.
        bands: names of the image's bands (``ds.bands``): a sensor's or common ones.
        sensor: whose names they are, where that is not clear from the names.

    Raises:
        ValueError: an unknown index, or a band it needs is not there.
    """

    def __init__(self, name: str, bands: Sequence[str], sensor: str | None = None):
        if name not in indices():
            near = difflib.get_close_matches(name, indices(), 3, 0.3) or list(indices())
            raise ValueError(f"no index {name!r} (did you mean {', '.join(near)}?)")
        known = common_names(bands, sensor)
        wanted = list(indices()[name].values())
        missing = [band for band in wanted if band not in known]
        if missing:
            raise ValueError(f"{name} needs the bands {', '.join(missing)}; there are {', '.join(known)}")
        self.name, self.places = name, [known.index(band) for band in wanted]
        self.bands = (*bands, name)

    def __call__(self, sample: Sample) -> Sample:
        image = sample["image"]
        a, *others = (image[..., place, :, :] for place in self.places)
        b = torch.stack(others).sum(0)
        defined = a + b != 0
        index = torch.where(defined, (a - b) / torch.where(defined, a + b, 1), 0)
        out = sample | {"image": torch.cat([image, index.unsqueeze(-3)], -3)}
        if "valid" in sample:
            out["valid"] = sample["valid"] & defined
        return out


class Normalize:
    """(image - mean) / std of each band; 0 where not valid."""

    def __init__(self, mean: Float[Tensor, " bands"], std: Float[Tensor, " bands"]):
        if not bool((std > 0).all()):
            raise ValueError(f"std must be positive, got {std.tolist()}")
        self.mean, self.std = mean[:, None, None], std[:, None, None]

    def __call__(self, sample: Sample) -> Sample:
        image = (sample["image"] - self.mean.to(sample["image"])) / self.std.to(sample["image"])
        return sample | {"image": image * sample["valid"].unsqueeze(-3) if "valid" in sample else image}


class PercentileStretch:
    """Each band of a sample from its percentiles `low` and `high`, over the valid pixels, to [0, 1], and cut there."""

    def __init__(self, low: float = 2.0, high: float = 98.0):
        if not 0 <= low < high <= 100:
            raise ValueError(f"low and high must ascend within [0, 100], got {low} and {high}")
        self.fractions = torch.tensor([low / 100, high / 100])

    def __call__(self, sample: Sample) -> Sample:
        image, valid = sample["image"], sample["valid"]
        if not bool(valid.any()):
            return sample
        # torch.quantile takes 2^24 values at most; every n-th of more tells the same.
        pixels = image[..., valid]
        pixels = pixels[:, :: max(1, pixels.shape[1] >> 22)]
        low, high = torch.quantile(pixels, self.fractions.to(image), dim=1)[..., None, None]
        stretched = ((image - low) / (high - low).clamp_min(1e-12)).clamp(0, 1)
        return sample | {"image": stretched * valid}


def flip_horizontal(sample: Sample) -> Sample:
    """Mirror left and right: image, mask, valid, instances, and boxes (left, top, right, bottom in pixels)."""
    out = sample | {key: sample[key].flip(-1) for key in SPATIAL if key in sample}
    if "boxes" in sample:
        left, top, right, bottom = sample["boxes"].unbind(-1)
        width = _size(sample)[1]
        out["boxes"] = torch.stack([width - right, top, width - left, bottom], -1)
    return out


def rotate90(sample: Sample, times: int = 1) -> Sample:
    """Turn by so many quarters against the clock."""
    out = sample
    for _ in range(times % 4):
        height, width = _size(out)
        turned = out | {key: out[key].rot90(1, (-2, -1)) for key in SPATIAL if key in out}
        if "boxes" in out:
            left, top, right, bottom = out["boxes"].unbind(-1)
            turned["boxes"] = torch.stack([top, width - right, bottom, width - left], -1)
        out = turned
    return out


def crop(sample: Sample, top: int, left: int, height: int, width: int) -> Sample:
    """A window; boxes are cut to it, and those outside left out with their labels and instances.

    Raises:
        ValueError: a window that does not lie within the sample.
    """
    rows, columns = _size(sample)
    if top < 0 or left < 0 or height < 1 or width < 1 or top + height > rows or left + width > columns:
        raise ValueError(f"crop {(top, left, height, width)} must lie within {rows} x {columns} pixels")
    window = (..., slice(top, top + height), slice(left, left + width))
    out = sample | {key: sample[key][window] for key in SPATIAL if key in sample}
    if "boxes" in sample:
        boxes = sample["boxes"] - sample["boxes"].new_tensor([left, top, left, top])
        boxes = boxes.clamp_min(0).minimum(boxes.new_tensor([width, height, width, height]))
        kept = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
        out |= {"boxes": boxes[kept]} | {key: out[key][kept] for key in ("labels", "instances") if key in out}
    return out


def random_d4(sample: Sample, generator: torch.Generator) -> Sample:
    """One of the eight flips and quarter turns, which remote sensing knows no difference between."""
    draw = int(torch.randint(8, (), generator=generator))
    return rotate90(flip_horizontal(sample) if draw >= 4 else sample, draw % 4)


def random_crop(sample: Sample, size: int, generator: torch.Generator) -> Sample:
    """A window of `size` x `size` pixels anywhere in the sample."""
    rows, columns = _size(sample)
    if size > min(rows, columns):
        raise ValueError(f"size {size} exceeds the sample's {rows} x {columns} pixels")
    top, left = (int(torch.randint(n - size + 1, (), generator=generator)) for n in (rows, columns))
    return crop(sample, top, left, size, size)


def _size(sample: Sample) -> tuple[int, int]:
    for key in SPATIAL:
        if key in sample:
            return tuple(sample[key].shape[-2:])
    raise ValueError(f"sample has none of {SPATIAL}")
