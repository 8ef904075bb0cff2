"""Random changes of image batches, vectorised over the batch and seeded."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def elastic_deform(
    images: Float[Tensor, "batch channels height width"],
    sigma: float = 4.0,
    alpha: float = 20.0,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "batch channels height width"]:
    """Move every pixel by a smooth random field (Simard, Steinkraus and Platt 2003, section 2).

    Each image has its own field: uniform noise in [-1, 1] for both axes, smoothed by a Gaussian and multiplied by
    `alpha`. Values are interpolated bilinearly; what comes from outside is mirrored at the border.

    Args:
        images: any value range.
        sigma: width of the Gaussian in pixels; larger is smoother.
        alpha: strength in pixels before smoothing; 0 is the identity. Smoothing shrinks the noise: with the defaults
            a pixel moves by about 0.8 pixels.
        generator: on the CPU; the same state gives the same fields on every device. None draws from the global one.

    Raises:
        ValueError: not a batch of images, or `sigma` not positive.
    """
    if images.ndim != 4:
        raise ValueError(f"images must have shape [B, C, H, W], got {list(images.shape)}")
    if not sigma > 0:
        raise ValueError(f"sigma must be positive, got {sigma}")
    if alpha == 0:
        return images
    batch, _, height, width = images.shape
    noise = torch.rand(batch * 2, 1, height, width, generator=generator).mul_(2).sub_(1).to(images)
    field = alpha * _smooth(noise, sigma).view(batch, 2, height, width)
    rows = torch.arange(height, device=images.device).view(1, height, 1) + field[:, 0]
    columns = torch.arange(width, device=images.device).view(1, 1, width) + field[:, 1]
    # grid_sample wants x before y, with -1 and 1 at the centres of the outermost pixels
    grid = torch.stack((columns * (2 / max(width - 1, 1)) - 1, rows * (2 / max(height - 1, 1)) - 1), dim=-1)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=True)


def random_shift(
    images: Float[Tensor, "batch channels height width"],
    pixels: int = 1,
    generator: torch.Generator | None = None,
    probability: float = 1.0,
) -> Float[Tensor, "batch channels height width"]:
    """Shift each image by a whole number of pixels in both directions; what comes from outside is 0.

    Args:
        images: any value range.
        pixels: the largest shift; each one in [-pixels, pixels] is equally likely, for both axes on their own.
        generator: on the CPU; the same state gives the same shifts on every device. None draws from the global one.
        probability: share of images that are shifted.

    Raises:
        ValueError: not a batch of images, or an argument out of range.
    """
    if images.ndim != 4:
        raise ValueError(f"images must have shape [B, C, H, W], got {list(images.shape)}")
    if pixels < 0:
        raise ValueError(f"pixels must not be negative, got {pixels}")
    if not 0 <= probability <= 1:
        raise ValueError(f"probability must lie in [0, 1], got {probability}")
    batch, _, height, width = images.shape
    shifts = torch.randint(-pixels, pixels + 1, (2, batch, 1), generator=generator)
    shifts = shifts * (torch.rand(batch, 1, generator=generator) < probability)
    rows = (pixels + torch.arange(height) - shifts[0]).to(images.device)
    columns = (pixels + torch.arange(width) - shifts[1]).to(images.device)
    padded = F.pad(images, (pixels,) * 4).permute(0, 2, 3, 1)
    index = torch.arange(batch, device=images.device)[:, None, None]
    return padded[index, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


def _smooth(noise: Float[Tensor, "n 1 height width"], sigma: float) -> Float[Tensor, "n 1 height width"]:
    """Convolve with a normalised Gaussian cut off at four widths; zeros outside."""
    radius = int(4 * sigma + 0.5)
    offsets = torch.arange(-radius, radius + 1, dtype=noise.dtype, device=noise.device)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = kernel / kernel.sum()
    across = F.conv2d(noise, kernel.view(1, 1, 1, -1), padding=(0, radius))
    return F.conv2d(across, kernel.view(1, 1, -1, 1), padding=(radius, 0))
