"""Made-up slices of heads as computed tomography shows them, with and without a lesion."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from flambeau.data.images.image_set import ImageSet
from flambeau.data.seeding import derive_generator

CLASSES = ["none", "dense", "ring", "hypodense"]


def head_phantoms(
    count: int = 2000,
    size: int = 48,
    *,
    slices: int = 2,
    contrast: float = 0.3,
    radius: tuple[float, float] = (0.12, 0.25),
    noise: float = 0.05,
    seed: int = 0,
) -> ImageSet:
    """Slices 1 x size x size of four classes: no lesion, a bright blob, a bright ring, a dark blob.

    A head is a bright skull around tissue with a smooth texture and two dark ventricles. Neighbouring slices of one
    head look alike, so a head is a group. Heads are of the classes in turn.

    count: slices in all. slices: neighbouring slices of a head. contrast: of a lesion against tissue; the skull is
    brighter than tissue by 0.5. radius: smallest and largest of a lesion, in halves of the image's side. noise:
    standard deviation in each pixel. Raises ValueError for a value out of range.
    """
    if count < 1 or size < 16 or slices < 1:
        raise ValueError(f"count, size and slices must be at least 1, 16 and 1, got {count}, {size}, {slices}")
    if not 0 < radius[0] <= radius[1] < 0.5:
        raise ValueError(f"radius must be 0 < smallest <= largest < 0.5, got {radius}")
    if not 0 <= contrast <= 0.4 or noise < 0:
        raise ValueError(f"contrast must lie in [0, 0.4] and noise not be negative, got {contrast} and {noise}")
    generator = derive_generator(seed, "head phantoms")
    heads = -(-count // slices)
    head = torch.arange(heads).repeat_interleave(slices)[:count]
    place = (torch.arange(slices) - (slices - 1) / 2).repeat(heads)[:count]  # along the body, in slices

    def draw(low: float, high: float, drift: float = 0.0) -> Float[Tensor, "count 1 1"]:
        """Uniform for each head; `drift` is the standard deviation of its change to the next slice."""
        own = torch.empty(heads).uniform_(low, high, generator=generator)
        return (own[head] + drift * torch.randn(heads, generator=generator)[head] * place).view(-1, 1, 1)

    axis = (torch.arange(size) + 0.5) * (2 / size) - 1
    y, x = axis.view(1, -1, 1) - draw(-0.06, 0.06), axis.view(1, 1, -1) - draw(-0.06, 0.06)
    tilt = draw(-0.25, 0.25)
    x, y = tilt.cos() * x + tilt.sin() * y, tilt.cos() * y - tilt.sin() * x
    soft = 1.5 / size  # half a pixel's width at an edge: partial volume

    def inside(distance: Tensor) -> Tensor:
        return torch.sigmoid(-distance / soft)

    width, height, bone = draw(0.66, 0.8, 0.01), draw(0.78, 0.9, 0.01), draw(0.07, 0.12)
    outer = inside(((x / width).square() + (y / height).square()).sqrt() - 1)
    brain = inside(((x / (width - bone)).square() + (y / (height - bone)).square()).sqrt() - 1)
    tissue = draw(0.4, 0.5) + sum(
        strength * _smooth_noise(heads, cells, size, generator)[head] for cells, strength in ((5, 0.03), (12, 0.02))
    )
    apart, long, wide, up = draw(0.1, 0.16), draw(0.16, 0.3, 0.02), draw(0.05, 0.08, 0.005), draw(-0.12, 0.08)
    for side in (-1, 1):
        ventricle = inside((((x - side * apart) / wide).square() + ((y - up) / long).square()).sqrt() - 1)
        tissue = torch.lerp(tissue, torch.full_like(tissue, 0.25), ventricle)

    labels = (torch.arange(heads) % len(CLASSES))[head]
    angle, far, reach = draw(0, 2 * torch.pi), draw(0.2, 0.42, 0.01), draw(*radius)
    reach = reach * (1 - 0.1 * place.abs().view(-1, 1, 1))
    distance = ((x - far * angle.cos()).square() + (y - far * angle.sin()).square()).sqrt()
    blob, hole = inside(distance - reach), inside(distance - 0.55 * reach)
    change = {"dense": blob, "ring": blob - hole, "hypodense": -blob}
    lesion = torch.zeros_like(tissue)
    for number, name in enumerate(CLASSES):
        if name in change:
            lesion = lesion + (labels == number).view(-1, 1, 1) * change[name]
    pixels = 0.95 * (outer - brain).clamp(min=0) + brain * (tissue + contrast * lesion)
    pixels = pixels + noise * torch.randn(count, size, size, generator=generator)
    return ImageSet(pixels.clamp(0, 1).unsqueeze(1), labels, list(CLASSES), head)


def _smooth_noise(count: int, cells: int, size: int, generator: torch.Generator) -> Float[Tensor, "count size size"]:
    coarse = torch.randn(count, 1, cells, cells, generator=generator)
    return F.interpolate(coarse, (size, size), mode="bicubic", align_corners=False).squeeze(1)
