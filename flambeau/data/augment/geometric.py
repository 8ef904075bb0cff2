"""Augmentations that move pixels: crops, flips, quarter turns."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from flambeau.data.augment.checks import check_images, check_range, check_share, draw_uniform

ATTEMPTS = 10  # boxes that are drawn before the largest one in the middle is taken, as in torchvision


@dataclass(frozen=True)
class RandomResizedCrop:
    """Cut a random box from each image and bring it to one size (Szegedy et al. 2015, arXiv 1409.4842, section 6).

    The box has a share of the image's area that is uniform in `scale` and a width-to-height ratio whose logarithm is
    uniform in that of `ratio`. A box that does not fit is drawn again, up to ten times; then the largest box in the
    middle is taken. Resizing is bilinear and antialiased.

    Args:
        size: height and width of the result in pixels, or one number for both.
        scale: smallest and largest share of the area.
        ratio: smallest and largest width over height.

    Raises:
        ValueError: a size below 1, or a range that is not positive and in order, or `scale` beyond 1.
    """

    size: int | tuple[int, int]
    scale: tuple[float, float] = (0.2, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    def __post_init__(self) -> None:
        if min(self._size()) < 1:
            raise ValueError(f"size must be at least 1 pixel, got {self.size}")
        check_range("scale", self.scale)
        check_range("ratio", self.ratio)
        if self.scale[1] > 1:
            raise ValueError(f"scale must not exceed 1, the whole image, got {self.scale}")

    def __call__(
        self, images: Float[Tensor, "batch channels height width"], generator: torch.Generator | None = None
    ) -> Float[Tensor, "batch channels height2 width2"]:
        check_images(images)
        boxes = self.boxes(len(images), (images.shape[2], images.shape[3]), generator)
        return cut_and_resize(images, boxes, self._size())

    def boxes(
        self, batch: int, size: tuple[int, int], generator: torch.Generator | None = None
    ) -> Int64[Tensor, "batch 4"]:
        """Top, left, height and width in pixels of a box for each of `batch` images of `size` (height, width)."""
        height, width = size
        area = height * width * draw_uniform(*self.scale, batch * ATTEMPTS, generator)
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        ratio = draw_uniform(low, high, batch * ATTEMPTS, generator).exp()
        wide = (area * ratio).sqrt().round().long().view(batch, ATTEMPTS)
        tall = (area / ratio).sqrt().round().long().view(batch, ATTEMPTS)
        fits = (wide > 0) & (wide <= width) & (tall > 0) & (tall <= height)
        first = fits.int().argmax(1, keepdim=True)
        tall, wide, found = tall.gather(1, first)[:, 0], wide.gather(1, first)[:, 0], fits.any(1)
        middle_tall, middle_wide = self._middle(height, width)
        tall, wide = tall.where(found, torch.tensor(middle_tall)), wide.where(found, torch.tensor(middle_wide))
        places = torch.rand(2, batch, generator=generator)
        top = torch.where(found, (places[0] * (height - tall + 1)).long(), (height - tall) // 2)
        left = torch.where(found, (places[1] * (width - wide + 1)).long(), (width - wide) // 2)
        # a product of 0.9999... and a large number may be rounded up to the bound itself
        return torch.stack([top.minimum(height - tall), left.minimum(width - wide), tall, wide], 1)

    def _middle(self, height: int, width: int) -> tuple[int, int]:
        if width / height < self.ratio[0]:
            return max(1, min(height, round(width / self.ratio[0]))), width
        if width / height > self.ratio[1]:
            return height, max(1, min(width, round(height * self.ratio[1])))
        return height, width

    def _size(self) -> tuple[int, int]:
        return (self.size, self.size) if isinstance(self.size, int) else (self.size[0], self.size[1])


def cut_and_resize(
    images: Float[Tensor, "batch channels height width"], boxes: Int64[Tensor, "batch 4"], size: tuple[int, int]
) -> Float[Tensor, "batch channels height2 width2"]:
    """The box (top, left, height, width) of each image at `size`: bilinear, antialiased where it shrinks."""
    if images.device.type == "cpu" and images.dtype in (torch.float32, torch.float64):
        # four times as fast there as products with matrices that are mostly zero
        pieces = [
            image[None, :, top : top + height, left : left + width]
            for image, (top, left, height, width) in zip(images, boxes.tolist())
        ]
        resized = [F.interpolate(piece, size, mode="bilinear", antialias=True, align_corners=False) for piece in pieces]
        return torch.cat(resized)
    return resize_by_products(images, boxes.to(images.device), size)


def resize_by_products(
    images: Float[Tensor, "batch channels height width"], boxes: Int64[Tensor, "batch 4"], size: tuple[int, int]
) -> Float[Tensor, "batch channels height2 width2"]:
    """:func:`cut_and_resize` as two matrix products for the whole batch."""
    top, left, height, width = boxes.unbind(1)
    rows = resize_matrix(top, height, images.shape[2], size[0]).to(images.dtype)
    columns = resize_matrix(left, width, images.shape[3], size[1]).to(images.dtype)
    return rows.unsqueeze(1) @ images @ columns.transpose(1, 2).unsqueeze(1)


def resize_matrix(
    start: Int64[Tensor, " batch"], length: Int64[Tensor, " batch"], source: int, target: int
) -> Float[Tensor, "batch target source"]:
    """Weights that take ``[start, start + length)`` of an axis of `source` pixels to `target` pixels.

    The triangle filter of bilinear resizing, as wide as an output pixel where that is larger than a pixel of the
    input (antialiasing, as in Pillow), cut off at the ends of the piece and normalised.
    """
    scale = (length / target).view(-1, 1, 1)
    centre = (torch.arange(target, device=start.device).view(1, -1, 1) + 0.5) * scale  # within the piece
    pixel = torch.arange(source, device=start.device).view(1, 1, -1) - start.view(-1, 1, 1)
    weight = (1 - ((pixel + 0.5 - centre) / scale.clamp(min=1)).abs()).clamp(min=0)
    weight = weight * ((pixel >= 0) & (pixel < length.view(-1, 1, 1)))
    return weight / weight.sum(2, keepdim=True)


@dataclass(frozen=True)
class RandomFlip:
    """Mirror each image left to right with probability `p`. Raises ValueError for `p` outside [0, 1]."""

    p: float = 0.5

    def __post_init__(self) -> None:
        check_share(self.p)

    def __call__(
        self, images: Float[Tensor, "batch channels height width"], generator: torch.Generator | None = None
    ) -> Float[Tensor, "batch channels height width"]:
        check_images(images)
        chosen = (torch.rand(len(images), 1, 1, 1, generator=generator) < self.p).to(images.device)
        return torch.where(chosen, images.flip(3), images)


def rotate_quarter(
    images: Float[Tensor, "batch channels height width"], k: Int64[Tensor, " batch"]
) -> Float[Tensor, "batch channels height width"]:
    """Turn each image by its own k quarter turns to the left (counter-clockwise, as ``torch.rot90``; k modulo 4).

    Raises:
        TypeError: `k` is not int64.
        ValueError: images that are not square, or `k` of another length.
    """
    check_images(images)
    if images.shape[2] != images.shape[3]:
        raise ValueError(f"images must be square to be rotated by a quarter, got {list(images.shape[2:])}")
    if k.dtype != torch.int64:
        raise TypeError(f"k must be int64, got {k.dtype}")
    if k.shape != images.shape[:1]:
        raise ValueError(f"k must have shape [{len(images)}], got {list(k.shape)}")
    turns = k.to(images.device).remainder(4).view(-1, 1, 1, 1)
    turned = torch.where(turns >= 2, images.flip(2, 3), images)
    return torch.where(turns % 2 == 1, turned.rot90(1, (2, 3)), turned)
