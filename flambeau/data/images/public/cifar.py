"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009, https://www.cs.toronto.edu/~kriz/cifar.html)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from flambeau.data.images.files import MAX_VALUES
from flambeau.data.images.image_set import ImageSet
from flambeau.data.images.public.listing import read_lines
from flambeau.data.images.public.plain_pickle import read_plain_pickle

PIXELS = 3 * 32 * 32


def cifar10(path: str | Path, train: bool = True) -> ImageSet:
    """50000 training or 10000 test images, 3x32x32, ten classes.

    Args:
        path: folder of the binary version (``data_batch_1.bin``, ..., ``batches.meta.txt``) or of the Python version
            (``data_batch_1``, ..., ``batches.meta``; read without unpickling), or the folder around one of them.
        train: the five training files instead of the test file.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file that is cut off or of another kind, or a label outside the classes; names the file.
    """
    stems = [f"data_batch_{number}" for number in range(1, 6)] if train else ["test_batch"]
    binary = _folder(Path(path), "cifar-10-batches-bin", "batches.meta.txt")
    if binary is not None:
        classes = [line.strip() for line in read_lines(binary / "batches.meta.txt") if line.strip()]
        return _join([_read_binary(binary / f"{stem}.bin", 1, 0, classes) for stem in stems], classes)
    folder = _folder(Path(path), "cifar-10-batches-py", "batches.meta")
    if folder is None:
        raise FileNotFoundError(f"{path} has neither batches.meta.txt (binary) nor batches.meta (Python version)")
    classes = _names(folder / "batches.meta", b"label_names")
    return _join([_read_pickle(folder / stem, b"labels", classes) for stem in stems], classes)


def cifar100(path: str | Path, train: bool = True, coarse: bool = False) -> ImageSet:
    """50000 training or 10000 test images, 3x32x32, 100 classes (or, `coarse`, their 20 superclasses).

    Args:
        path: folder of the binary version (``train.bin``, ``fine_label_names.txt``, ...) or of the Python version
            (``train``, ``meta``, ...; read without unpickling), or the folder around one of them.
        train: the training file instead of the test file.
        coarse: superclasses as labels.

    Raises:
        FileNotFoundError, ValueError: as :func:`cifar10`.
    """
    stem, kind = "train" if train else "test", "coarse" if coarse else "fine"
    binary = _folder(Path(path), "cifar-100-binary", "fine_label_names.txt")
    if binary is not None:
        classes = [line.strip() for line in read_lines(binary / f"{kind}_label_names.txt") if line.strip()]
        return _join([_read_binary(binary / f"{stem}.bin", 2, 0 if coarse else 1, classes)], classes)
    folder = _folder(Path(path), "cifar-100-python", "meta")
    if folder is None:
        raise FileNotFoundError(f"{path} has neither fine_label_names.txt (binary) nor meta (Python version)")
    classes = _names(folder / "meta", f"{kind}_label_names".encode())
    return _join([_read_pickle(folder / stem, f"{kind}_labels".encode(), classes)], classes)


def _folder(path: Path, usual: str, file: str) -> Path | None:
    return next((folder for folder in (path, path / usual) if (folder / file).is_file()), None)


def _read_binary(path: Path, labels: int, column: int, classes: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Records of `labels` bytes and 3072 of red, green and blue; the label is in `column`."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing")
    size, record = path.stat().st_size, labels + PIXELS
    if size == 0 or size % record:
        raise ValueError(f"{path} has {size} bytes, expected a multiple of {record}; it may be cut off")
    if size > MAX_VALUES:
        raise ValueError(f"{path} has {size} bytes; at most {MAX_VALUES} are read")
    records = np.fromfile(path, np.uint8).reshape(-1, record)
    return records[:, labels:], _checked(records[:, column].astype(np.int64), classes, path)


def _read_pickle(path: Path, key: bytes, classes: list[str]) -> tuple[np.ndarray, np.ndarray]:
    content = _dict(path, b"data", key)
    pixels, labels = content[b"data"], content[key]
    if not isinstance(pixels, np.ndarray) or pixels.ndim != 2 or pixels.shape[1] != PIXELS:
        raise ValueError(f"{path}: data must be bytes [N, {PIXELS}], got {getattr(pixels, 'shape', type(pixels))}")
    if not isinstance(labels, list) or not all(type(label) is int for label in labels) or len(labels) != len(pixels):
        raise ValueError(f"{path}: {key.decode()} must be {len(pixels)} integers")
    return pixels, _checked(np.array(labels), classes, path)


def _names(path: Path, key: bytes) -> list[str]:
    names = _dict(path, key)[key]
    if not isinstance(names, list) or not all(isinstance(name, bytes) for name in names):
        raise ValueError(f"{path}: {key.decode()} must be a list of strings")
    return [name.decode("ascii", "replace") for name in names]


def _dict(path: Path, *keys: bytes) -> dict[Any, Any]:
    content = read_plain_pickle(path)
    missing = [key.decode() for key in keys if not isinstance(content, dict) or key not in content]
    if missing:
        raise ValueError(f"{path} has no {', '.join(missing)}")
    return content


def _checked(labels: np.ndarray, classes: list[str], path: Path) -> np.ndarray:
    if len(labels) == 0 or labels.min() < 0 or labels.max() >= len(classes):
        raise ValueError(f"{path}: expected labels of {len(classes)} classes, got {sorted(set(labels.tolist()))[-3:]}")
    return labels


def _join(parts: list[tuple[np.ndarray, np.ndarray]], classes: list[str]) -> ImageSet:
    pixels = torch.from_numpy(np.concatenate([pixels for pixels, _ in parts]))
    labels = torch.from_numpy(np.concatenate([labels for _, labels in parts]))
    return ImageSet(pixels.float().div_(255).view(-1, 3, 32, 32), labels, classes)
