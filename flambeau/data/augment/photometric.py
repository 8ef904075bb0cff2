"""Augmentations that change the values of pixels: colours, blur, solarisation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from flambeau.data.augment.checks import check_images, check_range, check_share, draw_rows, draw_uniform

LUMA = (0.2989, 0.587, 0.114)  # ITU-R BT.601, as torchvision rounds it


@dataclass(frozen=True)
class ColorJitter:
    """Change brightness, contrast, saturation and hue of each image, in an order of its own.

    The meanings are torchvision's: an image is multiplied by a factor (brightness), or blended by a factor with the
    mean of its luma (contrast) or with its luma (saturation), each uniform in ``[max(0, 1 - x), 1 + x]``; its hue is
    turned by a share of the colour circle, uniform in ``[-x, x]``. After each step values are clipped to [0, 1].
    Brightness and contrast work on any number of channels (without three, luma is the mean of the channels).

    Args:
        brightness, contrast, saturation: the x above; 0 leaves the property alone.
        hue: at most 0.5, half the circle.
        p: share of images that are changed.

    Raises:
        ValueError: a negative strength, a hue beyond 0.5, or (when called) saturation or hue of other than 3 channels.
    """

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    p: float = 0.8

    def __post_init__(self) -> None:
        check_share(self.p)
        for name in ("brightness", "contrast", "saturation", "hue"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.hue > 0.5:
            raise ValueError(f"hue must not exceed 0.5, half the colour circle, got {self.hue}")

    def __call__(
        self, images: Float[Tensor, "batch channels height width"], generator: torch.Generator | None = None
    ) -> Float[Tensor, "batch channels height width"]:
        check_images(images)
        if images.shape[1] != 3 and (self.saturation or self.hue):
            raise ValueError(f"saturation and hue need 3 channels, got {images.shape[1]}; set them to 0")
        batch = len(images)
        chosen = torch.rand(batch, generator=generator) < self.p
        order = torch.rand(batch, 4, generator=generator).argsort(1)  # order[i, place] is a step
        factors = torch.empty(4, batch)
        for step, strength in enumerate((self.brightness, self.contrast, self.saturation)):
            factors[step] = draw_uniform(max(0.0, 1 - strength), 1 + strength, batch, generator)
        factors[3] = draw_uniform(-self.hue, self.hue, batch, generator)
        steps = [
            (0, self.brightness, adjust_brightness),
            (1, self.contrast, adjust_contrast),
            (2, self.saturation, adjust_saturation),
            (3, self.hue, adjust_hue),
        ]
        jittered = images.clone()
        for place in range(4):
            for step, strength, adjust in steps:
                if not strength:
                    continue
                rows = (chosen & (order[:, place] == step)).nonzero().flatten()
                if len(rows):
                    factor, rows = factors[step, rows].to(images), rows.to(images.device)
                    jittered[rows] = adjust(jittered[rows], factor)
        return jittered


def luma(images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch 1 height width"]:
    """Brightness as seen (BT.601) of 3 channels; the mean of any other number."""
    if images.shape[1] != 3:
        return images.mean(1, keepdim=True)
    red, green, blue = images.split(1, 1)
    return (LUMA[0] * red).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])


def adjust_brightness(
    images: Float[Tensor, "batch channels height width"], factor: Float[Tensor, " batch"]
) -> Float[Tensor, "batch channels height width"]:
    """Multiply each image by its factor: 0 is black, 1 the identity."""
    return (images * factor.view(-1, 1, 1, 1)).clamp_(0, 1)


def adjust_contrast(
    images: Float[Tensor, "batch channels height width"], factor: Float[Tensor, " batch"]
) -> Float[Tensor, "batch channels height width"]:
    """Blend each image with the mean of its luma: factor 0 is one grey, 1 the identity."""
    return torch.lerp(luma(images).mean((2, 3), keepdim=True), images, factor.view(-1, 1, 1, 1)).clamp_(0, 1)


def adjust_saturation(
    images: Float[Tensor, "batch 3 height width"], factor: Float[Tensor, " batch"]
) -> Float[Tensor, "batch 3 height width"]:
    """Blend each image with its luma: factor 0 is grey, 1 the identity."""
    return torch.lerp(luma(images), images, factor.view(-1, 1, 1, 1)).clamp_(0, 1)


def adjust_hue(
    images: Float[Tensor, "batch 3 height width"], shift: Float[Tensor, " batch"]
) -> Float[Tensor, "batch 3 height width"]:
    """Turn the hue (of hue, saturation and value) of each image by a share of the colour circle; +-1 is the identity.

    The way back from hue to red, green and blue is ``value - chroma * clip(min(k, 4 - k), 0, 1)`` with
    ``k = (n + 6 hue) mod 6`` and n = 5, 3, 1, which needs no case distinction.
    """
    red, green, blue = images.unbind(1)
    value = images.amax(1)
    chroma = value - images.amin(1)
    divisor = torch.where(chroma > 0, chroma, 1)
    sixth = torch.where(
        value == red,
        (green - blue) / divisor,  # grey has chroma 0 and ends here, with hue 0
        torch.where(value == green, (blue - red) / divisor + 2, (red - green) / divisor + 4),
    )
    sixth = sixth + 6 * shift.view(-1, 1, 1)
    channels = []
    for n in (5, 3, 1):
        k = (sixth + n).remainder_(6)
        channels.append(value - chroma * torch.minimum(k, 4 - k).clamp_(0, 1))
    return torch.stack(channels, 1).clamp_(0, 1)


@dataclass(frozen=True)
class RandomGrayscale:
    """Replace each image by its luma in all three channels with probability `p`.

    Raises:
        ValueError: `p` outside [0, 1], or images of other than 3 channels.
    """

    p: float = 0.2

    def __post_init__(self) -> None:
        check_share(self.p)

    def __call__(
        self, images: Float[Tensor, "batch 3 height width"], generator: torch.Generator | None = None
    ) -> Float[Tensor, "batch 3 height width"]:
        check_images(images)
        if images.shape[1] != 3:
            raise ValueError(f"RandomGrayscale needs images of 3 channels, got {images.shape[1]}; leave it out")
        rows = draw_rows(len(images), self.p, generator).to(images.device)
        return images.index_copy(0, rows, luma(images[rows]).expand(-1, 3, -1, -1))


@dataclass(frozen=True)
class GaussianBlur:
    """Blur each image with probability `p` by a Gaussian whose width is its own.

    The Gaussian is cut off at four of the largest widths; beyond the border the image is mirrored (without repeating
    the outermost pixel).

    Args:
        p: share of images that are blurred.
        sigma: smallest and largest standard deviation in pixels (SimCLR and MoCo v2: 0.1 to 2 at 224 pixels).

    Raises:
        ValueError: `p` outside [0, 1], or `sigma` not positive and in order.
    """

    p: float = 0.5
    sigma: tuple[float, float] = (0.1, 2.0)

    def __post_init__(self) -> None:
        check_share(self.p)
        check_range("sigma", self.sigma)

    def __call__(
        self, images: Float[Tensor, "batch channels height width"], generator: torch.Generator | None = None
    ) -> Float[Tensor, "batch channels height width"]:
        check_images(images)
        rows = draw_rows(len(images), self.p, generator)
        sigma = draw_uniform(*self.sigma, len(images), generator)[rows]
        if not len(rows):
            return images
        radius = int(4 * self.sigma[1] + 0.5)
        rows, sigma = rows.to(images.device), sigma.to(images.device)
        down = blur_matrix(sigma, images.shape[2], radius).to(images.dtype)
        across = blur_matrix(sigma, images.shape[3], radius).to(images.dtype)
        blurred = down.unsqueeze(1) @ images[rows] @ across.transpose(1, 2).unsqueeze(1)
        return images.index_copy(0, rows, blurred)


def blur_matrix(sigma: Float[Tensor, " batch"], size: int, radius: int) -> Float[Tensor, "batch size size"]:
    """Weights of a Gaussian of each `sigma`, `radius` pixels to both sides, on an axis of `size` pixels."""
    offsets = torch.arange(-radius, radius + 1, device=sigma.device)
    weights = torch.exp(-0.5 * (offsets / sigma.unsqueeze(1)) ** 2)
    weights = weights / weights.sum(1, keepdim=True)
    period = max(2 * (size - 1), 1)
    source = (torch.arange(size, device=sigma.device).unsqueeze(1) + offsets) % period
    source = torch.minimum(source, period - source) if size > 1 else torch.zeros_like(source)
    matrix = sigma.new_zeros(len(sigma), size, size)
    return matrix.scatter_add_(2, source.expand(len(sigma), -1, -1), weights.unsqueeze(1).expand(-1, size, -1))


@dataclass(frozen=True)
class Solarize:
    """Invert the values from `threshold` on, with probability `p` for each image (BYOL, arXiv 2006.07733, B).

    Raises:
        ValueError: `p` or `threshold` outside [0, 1].
    """

    p: float = 0.2
    threshold: float = 0.5

    def __post_init__(self) -> None:
        check_share(self.p)
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold must lie in [0, 1], got {self.threshold}")

    def __call__(
        self, images: Float[Tensor, "batch channels height width"], generator: torch.Generator | None = None
    ) -> Float[Tensor, "batch channels height width"]:
        check_images(images)
        rows = draw_rows(len(images), self.p, generator).to(images.device)
        chosen = images[rows]
        return images.index_copy(0, rows, torch.where(chosen >= self.threshold, 1 - chosen, chosen))


@dataclass(frozen=True)
class Normalize:
    """Subtract the mean of each channel and divide by its standard deviation; draws nothing.

    Args:
        mean, std: one number for each channel, or one for all.

    Raises:
        ValueError: a standard deviation that is not positive, or numbers for other channels than the images have.
    """

    mean: float | Sequence[float]
    std: float | Sequence[float]

    def __post_init__(self) -> None:
        if not all(value > 0 for value in _numbers(self.std)):
            raise ValueError(f"std must be positive, got {self.std}")

    def __call__(
        self, images: Float[Tensor, "batch channels height width"], generator: torch.Generator | None = None
    ) -> Float[Tensor, "batch channels height width"]:
        check_images(images)
        shift, scale = (images.new_tensor(_numbers(values)).view(1, -1, 1, 1) for values in (self.mean, self.std))
        for name, values in (("mean", shift), ("std", scale)):
            if values.shape[1] not in (1, images.shape[1]):
                raise ValueError(f"{name} has {values.shape[1]} numbers, the images have {images.shape[1]} channels")
        return (images - shift) / scale


def _numbers(values: float | Sequence[float]) -> list[float]:
    return [float(values)] if isinstance(values, (int, float)) else [float(value) for value in values]
