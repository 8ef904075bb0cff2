"""Medical images from whatever a user has them in."""

from __future__ import annotations

from pathlib import Path

import torch

from flambeau.data.images.files import image_folder
from flambeau.data.images.image_list import image_list
from flambeau.data.images.image_set import ImageSet
from flambeau.data.medical.medmnist import PARTS, medmnist


def medical_images(path: str | Path, *, size: int, gray: bool = True, labelled: bool = True) -> ImageSet:
    """Images ``size x size`` from a folder of class folders, a CSV list (image,label[,patient]) or a MedMNIST file.

    gray: one channel instead of three. labelled: without, labels are neither needed nor kept: a folder may be flat, a
    list have no labels. Of a MedMNIST file all three parts are read.

    Raises:
        FileNotFoundError: no such path.
        ValueError: no labels where they are needed, or what the loaders raise.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    if path.suffix.lower() == ".csv":
        return image_list(path, size=size, gray=gray, labelled=labelled)
    if path.suffix.lower() == ".npz":
        parts = [medmnist(path, part) for part in PARTS]
        images = torch.cat([part.images for part in parts])
        if images.shape[1] == 3 and gray:
            images = images.mean(1, keepdim=True)
        elif images.shape[1] == 1 and not gray:
            images = images.expand(-1, 3, -1, -1).contiguous()
        labels = torch.cat([part.labels for part in parts if part.labels is not None])
        found = ImageSet(images, labels, parts[0].classes).resize(size)
    elif path.is_dir():
        found = image_folder(path, size=size, gray=gray)
    else:
        raise ValueError(f"{path} must be a folder, a CSV list or a MedMNIST file (.npz)")
    if not labelled:
        return ImageSet(found.images, groups=found.groups)
    if found.labels is None:
        raise ValueError(f"{path} has no labels: put the pictures of each class into a folder of its own")
    return found
