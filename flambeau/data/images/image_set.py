"""Images with optional labels, and the sets that come with scikit-learn and scikit-image (no download)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from flambeau.data.seeding import derive_generator, derive_seed


@dataclass(frozen=True)
class ImageSet:
    """Images of one size, with optional labels.

    Args:
        images: float32 in [0, 1].
        labels: class of each image, or None.
        classes: names of the classes, so that ``classes[label]`` names a label.
        groups: images of one group (crops of one region, slices of one patient) are never split apart.

    Raises:
        TypeError: wrong dtype.
        ValueError: wrong shape or range, labels outside the classes.
    """

    images: Float[Tensor, "n channels height width"]
    labels: Int64[Tensor, " n"] | None = None
    classes: list[str] | None = None
    groups: Int64[Tensor, " n"] | None = None

    def __post_init__(self) -> None:
        if self.images.dtype != torch.float32:
            raise TypeError(f"images must be float32 in [0, 1], got {self.images.dtype}")
        if self.images.ndim != 4:
            raise ValueError(f"images must have shape [N, C, H, W], got {list(self.images.shape)}")
        if self.images.numel():
            low, high = self.images.aminmax()
            if not (low >= 0 and high <= 1):
                raise ValueError(f"images must lie in [0, 1], got [{low:g}, {high:g}]")
        for name, values in (("labels", self.labels), ("groups", self.groups)):
            if values is None:
                continue
            if values.dtype != torch.int64:
                raise TypeError(f"{name} must be int64, got {values.dtype}")
            if values.shape != self.images.shape[:1]:
                raise ValueError(f"{name} must have shape [{len(self.images)}], got {list(values.shape)}")
        if self.labels is not None and self.classes is not None and len(self.labels):
            low, high = self.labels.aminmax()
            if low < 0 or high >= len(self.classes):
                raise ValueError(f"labels must lie in [0, {len(self.classes)}), got [{low}, {high}]")

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows: int | slice | Sequence[int] | Tensor) -> Any:
        """With an integer ``(image, label)``, or the image alone without labels, as a map-style dataset gives.

        With a slice, a list, or an index or mask tensor those images as an ``ImageSet`` of their own.
        """
        if isinstance(rows, int):
            return self.images[rows] if self.labels is None else (self.images[rows], self.labels[rows])
        index = rows if isinstance(rows, slice) else torch.as_tensor(rows)
        return ImageSet(
            self.images[index],
            None if self.labels is None else self.labels[index],
            self.classes,
            None if self.groups is None else self.groups[index],
        )

    def split(self, fractions: Sequence[float], seed: int = 0) -> tuple[ImageSet, ...]:
        """Random disjoint parts, each class in the same proportions; a group stays whole.

        Args:
            fractions: share of each part; they sum to 1 (``(0.8, 0.2)``), or to less to leave images out.
            seed: which split; the same seed gives the same split on every machine.

        Raises:
            ValueError: fractions that are not positive or sum to more than 1, or a part that would be empty.
        """
        if not fractions or min(fractions) <= 0 or sum(fractions) > 1 + 1e-9:
            raise ValueError(f"fractions must be positive and sum to at most 1, got {tuple(fractions)}")
        labels = np.zeros(len(self), np.int64) if self.labels is None else self.labels.cpu().numpy()
        groups = np.arange(len(self)) if self.groups is None else self.groups.cpu().numpy()
        rng = np.random.default_rng(derive_seed(seed, "split"))
        bounds = np.cumsum(fractions)
        part_of = np.full(len(self), len(fractions))
        for label in np.unique(labels):
            members = np.flatnonzero(labels == label)
            names, group_of, sizes = np.unique(groups[members], return_inverse=True, return_counts=True)
            order = rng.permutation(len(names))
            middle = np.empty(len(names))
            middle[order] = (np.cumsum(sizes[order]) - sizes[order] / 2) / len(members)
            part_of[members] = np.searchsorted(bounds, middle, side="right")[group_of]
        parts = [np.flatnonzero(part_of == part) for part in range(len(fractions))]
        for fraction, rows in zip(fractions, parts):
            if not len(rows):
                raise ValueError(f"the part of {fraction:g} would be empty: {len(self)} images are too few")
        return tuple(self[torch.from_numpy(rng.permutation(rows))] for rows in parts)

    def resize(self, size: int | tuple[int, int]) -> ImageSet:
        """The set at another height and width in pixels: bilinear, antialiased when it shrinks."""
        height, width = (size, size) if isinstance(size, int) else size
        if min(height, width) < 1:
            raise ValueError(f"size must be at least 1 pixel, got {size}")
        images = F.interpolate(self.images, (height, width), mode="bilinear", antialias=True, align_corners=False)
        return ImageSet(images.clamp(0, 1), self.labels, self.classes, self.groups)


def digits(size: int = 8) -> ImageSet:
    """1797 handwritten digits, 1x8x8, ten classes (scikit-learn; test part of Alpaydin and Kaynak, UCI 1998).

    Args:
        size: height and width in pixels; other than 8, the images are resized.
    """
    from sklearn.datasets import load_digits

    data = load_digits()
    images = torch.from_numpy(data.images).float().div_(16).unsqueeze(1)
    labels = torch.from_numpy(data.target.astype(np.int64))
    loaded = ImageSet(images, labels, [str(digit) for digit in range(10)])
    return loaded if size == 8 else loaded.resize(size)


def faces() -> ImageSet:
    """200 grey crops, 1x25x25: 100 faces of Labeled Faces in the Wild and 100 other patches (scikit-image)."""
    from skimage.data import lfw_subset

    images = torch.from_numpy(lfw_subset()).float().clamp(0, 1).unsqueeze(1)
    labels = torch.arange(200).div(100, rounding_mode="floor")
    return ImageSet(images, labels, ["face", "other"])


PHOTOS = (
    "astronaut brick camera cell chelsea coffee coins grass gravel hubble_deep_field "
    "immunohistochemistry moon page retina rocket text china flower"
).split()

TEXTURES = ("brick", "grass", "gravel", "coins", "hubble_deep_field", "immunohistochemistry", "page")


def photo(name: str, gray: bool = False) -> Float[Tensor, "channels height width"]:
    """One whole photograph of :data:`PHOTOS` (scikit-image and scikit-learn), float32 in [0, 1].

    Raises:
        ValueError: unknown name.
    """
    if name not in PHOTOS:
        raise ValueError(f"photo must be one of {', '.join(PHOTOS)}, got {name!r}")
    if name in ("china", "flower"):
        from sklearn.datasets import load_sample_image

        pixels = load_sample_image(f"{name}.jpg")
    else:
        import skimage.data

        pixels = getattr(skimage.data, name)()
    image = torch.tensor(pixels, dtype=torch.float32).div_(255)
    image = image.expand(3, -1, -1) if image.ndim == 2 else image.permute(2, 0, 1)
    if not gray:
        return image.contiguous()
    weights = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)  # ITU-R BT.601 luma
    return (image * weights).sum(0, keepdim=True).clamp_(0, 1)


def photos(
    crop: int = 32, count: int = 3600, gray: bool = True, seed: int = 0, names: Sequence[str] = PHOTOS
) -> ImageSet:
    """Random square crops of 18 photographs; the label says which photograph a crop is from.

    Each photograph is cut into disjoint regions of about two crops a side; a crop lies in one region, and the region
    is its group. So ``photos().split((0.65, 0.35))`` gives parts that share no pixel.

    Args:
        crop: height and width of a crop in pixels, at most 172 (the smallest photograph).
        count: crops in all, spread evenly over the photographs.
        gray: one channel (BT.601 luma) instead of three.
        seed: which crops.
        names: the photographs, of :data:`PHOTOS`; :data:`TEXTURES` are seven that crops are told apart in.

    Raises:
        ValueError: `crop` or `count` out of range, or an unknown name.
    """
    if not 1 <= crop <= 172:
        raise ValueError(f"crop must lie in [1, 172] pixels, got {crop}")
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    generator = derive_generator(seed, "photos")
    crops, labels, groups = [], [], []
    for label, name in enumerate(names):
        image = photo(name, gray)
        regions = _regions(image.shape[1], image.shape[2], crop)
        wanted = count // len(names) + (label < count % len(names))
        order = torch.randperm(len(regions), generator=generator).tolist()
        for position in range(wanted):
            region = order[position % len(regions)]
            top, bottom, left, right = regions[region]
            y = top + _below(bottom - top - crop + 1, generator)
            x = left + _below(right - left - crop + 1, generator)
            crops.append(image[:, y : y + crop, x : x + crop])
            labels.append(label)
            groups.append(label * 1_000_000 + region)
    return ImageSet(torch.stack(crops), torch.tensor(labels), list(names), torch.tensor(groups))


def _regions(height: int, width: int, crop: int) -> list[tuple[int, int, int, int]]:
    """(top, bottom, left, right) of disjoint cells, about two crops a side, smaller if that leaves fewer than four."""
    rows, columns = max(1, height // (2 * crop)), max(1, width // (2 * crop))
    if rows * columns < 4:
        rows, columns = max(1, height // crop), max(1, width // crop)
    ys = [math.floor(height * i / rows) for i in range(rows + 1)]
    xs = [math.floor(width * i / columns) for i in range(columns + 1)]
    return [(top, bottom, left, right) for top, bottom in zip(ys, ys[1:]) for left, right in zip(xs, xs[1:])]


def _below(bound: int, generator: torch.Generator) -> int:
    return int(torch.randint(bound, (), generator=generator))


def to_image_tensor(pixels: Any) -> Float[Tensor, "channels height width"]:
    """A uint8 array [H, W] or [H, W, C] as a float32 tensor [C, H, W] in [0, 1]."""
    image = torch.tensor(np.asarray(pixels), dtype=torch.float32).div_(255)
    return image.unsqueeze(0) if image.ndim == 2 else image.permute(2, 0, 1).contiguous()
