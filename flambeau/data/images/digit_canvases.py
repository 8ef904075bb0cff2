"""Handwritten digits on photographed textures: small images in which most pixels are not the object."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from flambeau.data.images.image_set import ImageSet, digits, photo
from flambeau.data.seeding import derive_generator


def digit_canvases(
    size: int = 32,
    digit: int = 16,
    views: int = 3,
    textures: Sequence[str] = ("brick", "grass", "gravel"),
    contrast: float = 0.5,
    seed: int = 0,
) -> ImageSet:
    """Each of the 1797 digits of scikit-learn, `views` times, at a random place on a random crop of a texture.

    One channel. A digit is white and covers the texture by its own brightness. All views of a digit are one group, so
    that ``split`` puts them on one side.

    Args:
        size: height and width of a canvas in pixels.
        digit: height and width to which a digit is brought.
        views: canvases of each digit.
        textures: photographs that crops are cut from, see :data:`flambeau.data.PHOTOS`.
        contrast: the textures' brightness is multiplied by this, which leaves the digits brighter.
        seed: which places and crops.

    Raises:
        ValueError: a digit larger than the canvas, a canvas larger than a photograph, or a number out of range.
    """
    if not 1 <= digit <= size:
        raise ValueError(f"digit must lie in [1, size = {size}] pixels, got {digit}")
    if views < 1:
        raise ValueError(f"views must be at least 1, got {views}")
    if not 0 <= contrast <= 1:
        raise ValueError(f"contrast must lie in [0, 1], got {contrast}")
    if not textures:
        raise ValueError("textures: at least one is needed")
    grounds = [photo(name, gray=True)[0] for name in textures]
    smallest = min(min(ground.shape) for ground in grounds)
    if size > smallest:
        raise ValueError(f"size must not exceed the smallest photograph, {smallest} pixels, got {size}")
    source = digits(digit)
    assert source.labels is not None
    count = views * len(source)
    generator = derive_generator(seed, "canvases")
    which = torch.randint(len(grounds), (count,), generator=generator)
    places = torch.rand(count, 4, generator=generator)  # of the crop in the photograph, of the digit on the canvas
    images = torch.empty(count, 1, size, size)
    room = size - digit + 1
    for row, (ground, (v, u, y, x)) in enumerate(zip(which.tolist(), places.tolist())):
        texture = grounds[ground]
        top, left = int(v * (texture.shape[0] - size + 1)), int(u * (texture.shape[1] - size + 1))
        canvas = contrast * texture[top : top + size, left : left + size]
        top, left = int(y * room), int(x * room)
        shape = source.images[row // views, 0]
        part = canvas[top : top + digit, left : left + digit]
        part += (1 - part) * shape
        images[row, 0] = canvas
    labels = source.labels.repeat_interleave(views)
    groups = torch.arange(len(source)).repeat_interleave(views)
    return ImageSet(images.clamp_(0, 1), labels, source.classes, groups)
