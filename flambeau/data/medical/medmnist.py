"""MedMNIST's files: small medical images and volumes with labels, split by the authors."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from flambeau.data.images.files import MAX_VALUES
from flambeau.data.images.image_set import ImageSet

PARTS = ("train", "val", "test")


def medmnist(path: str | Path, part: str = "train") -> ImageSet:
    """Images of one part of a 2-D MedMNIST file, such as ``organsmnist.npz`` or ``pathmnist_224.npz``.

    The file holds ``{part}_images`` uint8 [N, H, W] or [N, H, W, 3] and ``{part}_labels`` [N, 1] (Yang et al. 2023,
    arXiv 2110.14795); nothing in it is unpickled. `part` is "train", "val" or "test". Classes are named by their
    numbers.

    Raises:
        FileNotFoundError: no such file.
        ValueError: an unknown part, a missing array, another shape or type, several labels an image (ChestMNIST), or
            volumes; the message names file and array.
    """
    pixels, labels, classes = _read(path, part)
    if pixels.ndim == 4 and pixels.shape[3] not in (1, 3):
        raise ValueError(f"{path}: {part}_images {list(pixels.shape)} are volumes; read them with medmnist_volumes")
    if pixels.ndim not in (3, 4):
        raise ValueError(f"{path}: {part}_images must be [N, H, W] or [N, H, W, 3], got {list(pixels.shape)}")
    images = torch.from_numpy(pixels).float().div_(255)
    images = images.unsqueeze(1) if images.ndim == 3 else images.permute(0, 3, 1, 2).contiguous()
    return ImageSet(images, labels, [str(number) for number in range(classes)])


def medmnist_volumes(
    path: str | Path, part: str = "train"
) -> tuple[Float[Tensor, "n 1 depth height width"], Int64[Tensor, " n"]]:
    """Volumes in [0, 1] and labels of one part of a 3-D MedMNIST file, such as ``organmnist3d.npz``.

    Raises:
        FileNotFoundError, ValueError: as :func:`medmnist`; images instead of volumes.
    """
    pixels, labels, _ = _read(path, part)
    if pixels.ndim != 4 or pixels.shape[3] in (1, 3):
        raise ValueError(f"{path}: {part}_images must be volumes [N, D, H, W], got {list(pixels.shape)}")
    return torch.from_numpy(pixels).float().div_(255).unsqueeze(1), labels


def read_npz(path: str | Path, names: tuple[str, ...]) -> list[np.ndarray]:
    """The arrays of those names in an ``.npz`` file, without unpickling and of bounded size.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not such a file, an array that is missing, holds objects, or is too large; the message names it.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    try:
        with zipfile.ZipFile(path) as archive:
            sizes = {item.filename.removesuffix(".npy"): item.file_size for item in archive.infolist()}
    except (zipfile.BadZipFile, OSError) as error:
        raise ValueError(f"{path} is no npz file: {error}") from None
    for name in names:
        if name not in sizes:
            raise ValueError(f"{path} has no array {name!r}; it has {', '.join(sorted(sizes)) or 'none'}")
        if sizes[name] > MAX_VALUES:  # a small file can unpack to any size
            raise ValueError(f"{path}: {name} has {sizes[name]} bytes; at most {MAX_VALUES} are read")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return [arrays[name] for name in names]
    except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: {', '.join(names)} cannot be read: {error}") from None


def _read(path: str | Path, part: str) -> tuple[np.ndarray, Int64[Tensor, " n"], int]:
    if part not in PARTS:
        raise ValueError(f"part must be one of {', '.join(PARTS)}, got {part!r}")
    pixels, *of_parts = read_npz(path, (f"{part}_images", *(f"{name}_labels" for name in PARTS)))
    if pixels.dtype != np.uint8:
        raise ValueError(f"{path}: {part}_images must be uint8, got {pixels.dtype}")
    labels: dict[str, Any] = dict(zip(PARTS, of_parts))
    for name, values in labels.items():
        if values.ndim == 2 and values.shape[1] > 1:
            raise ValueError(f"{path}: {name}_labels has {values.shape[1]} labels an image; one is expected")
        if not np.issubdtype(values.dtype, np.integer):
            raise ValueError(f"{path}: {name}_labels must be integers, got {values.dtype}")
        labels[name] = values.reshape(-1).astype(np.int64)
    own = labels[part]
    if len(own) != len(pixels):
        raise ValueError(f"{path}: {len(pixels)} {part}_images and {len(own)} {part}_labels")
    classes = max(int(values.max(initial=-1)) for values in labels.values()) + 1
    return pixels, torch.from_numpy(own), classes
