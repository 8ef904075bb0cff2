"""Images in folders named by an angle, binned into classes: regression as classification."""

import math
import os
from pathlib import Path

import numpy as np
import torch

from flambeau.data.images.files import SUFFIXES, read_image
from flambeau.data.images.image_set import ImageSet


def angle_folder(path: str | os.PathLike, *, bins: int = 11, size: int = 32, gray: bool = True) -> ImageSet:
    """Images below folders named by their angle in degrees (``-75``, ``0``, ``37.5``), as ``bins`` equal classes.

    The bins divide the range from the smallest to the largest angle so that its ends are bin centres: with one folder
    for each of eleven angles 15 degrees apart, each bin is one folder, as for the rendered cars of Li et al.
    (AAAI 2018, section 4.2). A class is named by the centre of its bin.

    Args:
        path: the folder of folders.
        bins: classes.
        size: height and width in pixels: a picture is resized to cover it, then cropped to the centre.
        gray: one channel instead of three.

    Raises:
        FileNotFoundError: ``path`` is no folder.
        ValueError: a folder whose name is not a finite number, fewer than two angles or bins, or a file that is no
            image.
    """
    root = Path(path)
    if not root.is_dir():
        raise FileNotFoundError(f"path: {root} is not a folder")
    if bins < 2 or size < 1:
        raise ValueError(f"bins, size: got {bins} and {size}, expected at least 2 bins and 1 pixel")
    files = [(_angle(folder), file) for folder in sorted(root.iterdir()) if folder.is_dir() for file in _images(folder)]
    angles = np.array([angle for angle, _ in files])
    if len(set(angles.tolist())) < 2:
        raise ValueError(f"path: {root} holds images of {len(set(angles.tolist()))} angles, expected at least two")
    centres = np.linspace(angles.min(), angles.max(), bins)
    labels = np.abs(angles[:, None] - centres).argmin(1)
    images = torch.stack([read_image(file, size, gray) for _, file in files])
    return ImageSet(images, torch.from_numpy(labels.astype(np.int64)), [f"{centre:g}°" for centre in centres])


def _angle(folder: Path) -> float:
    try:
        angle = float(folder.name)
    except ValueError:
        angle = math.nan
    if not math.isfinite(angle):
        raise ValueError(f"path: got a folder named {folder.name!r}, expected an angle in degrees such as '-15'")
    return angle


def _images(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES)
