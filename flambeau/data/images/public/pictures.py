"""Photographs that stay on disk: each is decoded when it is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor
from torch.utils.data import Dataset

from flambeau.data.images.files import MAX_VALUES, list_pictures, read_image
from flambeau.data.images.image_set import ImageSet


@dataclass(frozen=True)
class Pictures(Dataset):
    """A map-style dataset of (image, label), or of images alone without labels.

    Args:
        files: the pictures; formats, limits and errors are those of :func:`flambeau.data.read_image`.
        labels: class of each picture, or None.
        classes: names of the classes.
        size: height and width in pixels: each picture is resized to cover it, then cropped to the centre.
        gray: one channel instead of three.

    Raises:
        ValueError: no files, labels of another number, labels outside the classes, or a size below 1.
    """

    files: tuple[Path, ...]
    labels: Int64[Tensor, " n"] | None = None
    classes: list[str] | None = None
    size: int | tuple[int, int] = 224
    gray: bool = False

    def __post_init__(self) -> None:
        if not self.files:
            raise ValueError("files: at least one picture is needed")
        if min(self.shape) < 1:
            raise ValueError(f"size must be at least 1 pixel, got {self.size}")
        if self.labels is None:
            return
        if self.labels.shape != (len(self.files),):
            raise ValueError(f"labels must have shape [{len(self.files)}], got {list(self.labels.shape)}")
        low, high = self.labels.aminmax()
        if low < 0 or (self.classes is not None and high >= len(self.classes)):
            raise ValueError(f"labels must lie in [0, {len(self.classes or [])}), got [{low}, {high}]")

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, rows: int | slice | Sequence[int] | Tensor) -> Any:
        """With an integer the decoded picture and its label; with a slice, a list or an index or mask tensor a part."""
        if isinstance(rows, int):
            image = read_image(self.files[rows], self.size, self.gray)
            return image if self.labels is None else (image, self.labels[rows])
        chosen = torch.arange(len(self))[rows if isinstance(rows, slice) else torch.as_tensor(rows)]
        files = tuple(self.files[row] for row in chosen.tolist())
        return Pictures(files, None if self.labels is None else self.labels[chosen], self.classes, self.size, self.gray)

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of every picture, in pixels."""
        return (self.size, self.size) if isinstance(self.size, int) else (self.size[0], self.size[1])


def pictures(path: str | Path, size: int | tuple[int, int] = 224, gray: bool = False) -> Pictures:
    """The pictures of a folder as :func:`flambeau.data.image_folder` finds them, but left on disk; its errors apply."""
    files, labels, classes = list_pictures(Path(path))
    return Pictures(tuple(files), None if labels is None else torch.tensor(labels), classes, size, gray)


def in_memory(pictures: Pictures) -> ImageSet:
    """All the pictures, decoded; for sets that fit.

    Raises:
        ValueError: more than 2^31 values, 8 GiB.
    """
    height, width = pictures.shape
    values = len(pictures) * (1 if pictures.gray else 3) * height * width
    if values > MAX_VALUES:
        raise ValueError(f"{len(pictures)} pictures of {height}x{width} are {values} values, over {MAX_VALUES}")
    images = torch.stack([read_image(file, pictures.size, pictures.gray) for file in pictures.files])
    return ImageSet(images, pictures.labels, pictures.classes)
