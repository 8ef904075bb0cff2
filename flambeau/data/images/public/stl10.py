"""STL-10 (Coates, Lee and Ng 2011, https://cs.stanford.edu/~acoates/stl10)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import Dataset

from flambeau.data.images.files import MAX_VALUES
from flambeau.data.images.image_set import ImageSet
from flambeau.data.images.public.listing import read_lines

SHAPE = (3, 96, 96)
PIXELS = 3 * 96 * 96


def stl10(path: str | Path, train: bool = True) -> ImageSet:
    """5000 training or 8000 test images, 3x96x96, ten classes.

    Args:
        path: folder with ``train_X.bin``, ``train_y.bin``, ``test_X.bin``, ``test_y.bin`` and ``class_names.txt``.
        train: the training images instead of those for testing.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file that is cut off, numbers of images and labels that differ, or a label outside the classes.
    """
    root, part = Path(path), "train" if train else "test"
    classes = [line.strip() for line in read_lines(root / "class_names.txt") if line.strip()]
    stored = _open(root / f"{part}_X.bin")
    if stored.size > MAX_VALUES:
        raise ValueError(f"{root / f'{part}_X.bin'} has {stored.size} bytes; at most {MAX_VALUES} are read")
    file = root / f"{part}_y.bin"
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing")
    if file.stat().st_size != len(stored):
        raise ValueError(f"{file} has {file.stat().st_size} labels, {part}_X.bin has {len(stored)} images")
    labels = torch.from_numpy(np.fromfile(file, np.uint8).astype(np.int64)) - 1
    if labels.min() < 0 or labels.max() >= len(classes):
        raise ValueError(
            f"{file}: expected labels from 1 to {len(classes)}, got {labels.min() + 1} to {labels.max() + 1}"
        )
    return ImageSet(_upright(torch.from_numpy(np.array(stored))), labels, classes)


def stl10_unlabeled(path: str | Path) -> StoredImages:
    """100000 images without labels, 3x96x96, left on disk (11 GB as float32).

    Args:
        path: folder with ``unlabeled_X.bin``.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: it is cut off.
    """
    return StoredImages(Path(path) / "unlabeled_X.bin")


class StoredImages(Dataset):
    """Map-style dataset of the images of one STL-10 file, which is mapped into memory and not loaded."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._stored = _open(self.path)

    def __len__(self) -> int:
        return len(self._stored)

    def __getitem__(self, row: int) -> Float[Tensor, "3 96 96"]:
        return _upright(torch.from_numpy(np.array(self._stored[row]))[None])[0]


def _open(path: Path) -> np.ndarray:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing")
    size = path.stat().st_size
    if size == 0 or size % PIXELS:
        raise ValueError(f"{path} has {size} bytes, expected a multiple of {PIXELS}; it may be cut off")
    return np.memmap(path, np.uint8, "r").reshape(-1, *SHAPE)


def _upright(stored: Tensor) -> Float[Tensor, "n 3 96 96"]:
    """The files hold each channel column by column."""
    return stored.transpose(2, 3).float().div_(255).contiguous()
