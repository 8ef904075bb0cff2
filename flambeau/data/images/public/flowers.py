"""Oxford 102 Flowers (Nilsback and Zisserman 2008, https://www.robots.ox.ac.uk/~vgg/data/flowers/102)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from flambeau.data.images.public.listing import existing
from flambeau.data.images.public.pictures import Pictures

PARTS = {"train": "trnid", "val": "valid", "test": "tstid"}
NUMBERS = ("uint8", "uint16", "uint32", "int8", "int16", "int32", "int64", "single", "double")
MAX_BYTES = 1 << 20  # the published files have 502 and 14989 bytes
MAX_IMAGES = 100_000


def flowers(
    path: str | Path, part: Literal["train", "val", "test"] = "train", size: int | tuple[int, int] = 224
) -> Pictures:
    """8189 photographs of 102 kinds of flowers: ten a class for training, ten for validation, 6149 for testing.

    Classes are named by their number, from 1, as the published files have no names.

    Args:
        path: folder with ``jpg/image_00001.jpg``, ..., ``imagelabels.mat`` and ``setid.mat``.
        part: which of the published parts; many train on the large test part instead and say so.
        size: height and width in pixels.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: another part, a file that is no MATLAB file, or one without the numbers that are expected.
    """
    if part not in PARTS:
        raise ValueError(f"part must be one of {', '.join(PARTS)}, got {part!r}")
    root = Path(path)
    labels = _numbers(root / "imagelabels.mat", "labels", 1000)
    chosen = _numbers(root / "setid.mat", PARTS[part], len(labels))
    files = existing([root / "jpg" / f"image_{number:05d}.jpg" for number in chosen.tolist()])
    classes = [str(number) for number in range(1, int(labels.max()) + 1)]
    return Pictures(files, torch.from_numpy(labels[chosen - 1] - 1), classes, size)


def _numbers(path: Path, name: str, highest: int) -> np.ndarray:
    """Whole numbers from 1 to `highest` of one variable of a MATLAB file."""
    from scipy.io import loadmat, whosmat

    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing")
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{path} has {path.stat().st_size} bytes; at most {MAX_BYTES} are read")
    try:
        announced = {variable: (shape, kind) for variable, shape, kind in whosmat(path)}
        shape, kind = announced.get(name, ((), "nothing"))
        if kind not in NUMBERS or not 0 < math.prod(shape) <= MAX_IMAGES:
            raise ValueError(f"{name} is {kind} {list(shape)}, expected up to {MAX_IMAGES} numbers")
        values = np.asarray(loadmat(path, variable_names=[name])[name], np.float64).ravel()
    except Exception as error:  # scipy raises many kinds of them for files that are cut off or of another kind
        raise ValueError(f"{path} cannot be read: {type(error).__name__}: {error}") from None
    if not (np.isfinite(values).all() and (values == np.floor(values)).all()):
        raise ValueError(f"{path}: {name} holds numbers that are not whole")
    if values.min() < 1 or values.max() > highest:
        raise ValueError(f"{path}: {name} must lie in [1, {highest}], got [{values.min():g}, {values.max():g}]")
    return values.astype(np.int64)
