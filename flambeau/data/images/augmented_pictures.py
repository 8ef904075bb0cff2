"""Folders of class folders as ImageNet is trained on: random crops and flips, or the centre, and normalised."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from flambeau.data.augment.deform import random_shift
from flambeau.data.images.files import list_pictures, read_image

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as in torchvision's weights


class AugmentedPictures(Dataset):
    """Pictures that stay on disk: item i is ``(image [3, size, size], label)``, of zero mean and unit spread.

    In training a random part of the picture, of `scale` times its area and a ratio of sides of 3/4 to 4/3, is resized
    to `size` and flipped half of the times (Szegedy et al. 2015, arXiv 1409.4842, section 6). Else the shorter side
    is brought to `resize` pixels and the centre cut out. Random numbers come from torch's global generator.

    Args:
        path: folder of class folders.
        train: random parts instead of the centre.
        size: height and width in pixels.
        resize: pixels of the shorter side before the centre is cut out.
        scale: smallest and largest share of the area.

    Raises:
        ValueError: no pictures, no class folders, or `resize` below `size`; a file that cannot be read, once it is
            asked for.
        NotADirectoryError: `path` is no folder.
    """

    def __init__(
        self,
        path: str | Path,
        train: bool = True,
        *,
        size: int = 224,
        resize: int = 256,
        scale: tuple[float, float] = (0.08, 1.0),
    ):
        if not 1 <= size <= resize:
            raise ValueError(f"size must lie in [1, resize], got size {size} and resize {resize}")
        if not 0 < scale[0] <= scale[1] <= 1:
            raise ValueError(f"scale must be 0 < smallest <= largest <= 1, got {scale}")
        self.files, labels, classes = list_pictures(Path(path).expanduser())
        if labels is None or classes is None:
            raise ValueError(f"{path}: expected a folder for each class, got pictures without")
        self.labels, self.classes = torch.tensor(labels), classes
        self.train, self.size, self.resize, self.scale = train, size, resize, scale
        self.mean, self.std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, row: int) -> tuple[Float[Tensor, "3 size size"], Tensor]:
        if self.train:
            image = _resized(self._random_part(read_image(self.files[row])), self.size)
            image = image.flip(-1) if torch.rand(()) < 0.5 else image
        else:
            start = (self.resize - self.size) // 2
            image = read_image(self.files[row], self.resize)[:, start : start + self.size, start : start + self.size]
        return (image - self.mean) / self.std, self.labels[row]

    def _random_part(self, image: Tensor) -> Tensor:
        height, width = image.shape[1:]
        for _ in range(10):
            area = height * width * float(torch.empty(()).uniform_(*self.scale))
            ratio = math.exp(float(torch.empty(()).uniform_(math.log(3 / 4), math.log(4 / 3))))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                top, left = (int(torch.randint(room + 1, ())) for room in (height - h, width - w))
                return image[:, top : top + h, left : left + w]
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        return image[:, top : top + side, left : left + side]


class PadAndCrop:
    """Move each image of a batch by up to `padding` pixels and flip half of them (He et al. 2016, section 4.2).

    A ``transform`` for batches: ``(images [B, C, H, W], generator) -> images``. flip: also mirror. Raises ValueError
    for a negative padding.
    """

    def __init__(self, padding: int = 4, flip: bool = True):
        if padding < 0:
            raise ValueError(f"padding must not be negative, got {padding}")
        self.padding, self.flip = padding, flip

    def __call__(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        moved = random_shift(images, self.padding, generator)
        if not self.flip:
            return moved
        turned = (torch.rand(len(images), generator=generator) < 0.5).to(images.device)
        return torch.where(turned[:, None, None, None], moved.flip(-1), moved)


def _resized(image: Tensor, size: int) -> Tensor:
    resized = F.interpolate(image[None], (size, size), mode="bilinear", antialias=True, align_corners=False)
    return resized[0].clamp(0, 1)
