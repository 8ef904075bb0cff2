"""Moving-average decomposition of a series into trend and seasonal part (Autoformer, Wu et al. 2021, section 3.1)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn


def moving_average(x: Float[Tensor, "batch time dim"], kernel: int) -> Float[Tensor, "batch time dim"]:
    """Centred mean over `kernel` (odd) steps; the ends are padded by repeating the first and the last value.

    By differences of a running sum, several times faster than average pooling and independent of the kernel; the sum is
    in float64 because its rounding grows with the length.
    """
    half = (kernel - 1) // 2
    padded = torch.cat([x[:, :1].expand(-1, half + 1, -1), x, x[:, -1:].expand(-1, half, -1)], dim=1)
    total = padded.cumsum(dim=1, dtype=torch.float64)
    return ((total[:, kernel:] - total[:, :-kernel]) / kernel).to(x.dtype)


class SeriesDecomposition(nn.Module):
    """Split a series into ``(seasonal, trend)`` with ``seasonal + trend == x`` (equation 1).

    Several kernels give a mixture of their moving averages, weighted at each point by a learned softmax of the value
    (FEDformer, Zhou et al. 2022, equation 5).

    Args:
        kernel: width(s) of the moving average in steps, odd.

    Raises:
        ValueError: a kernel that is even or below 1.
    """

    def __init__(self, kernel: int | Sequence[int] = 25):
        super().__init__()
        self.kernels = (kernel,) if isinstance(kernel, int) else tuple(kernel)
        if not self.kernels or any(k < 1 or k % 2 == 0 for k in self.kernels):
            raise ValueError(f"kernel must be odd and positive so that the moving average is centred, got {kernel}")
        self.mixture = nn.Linear(1, len(self.kernels)) if len(self.kernels) > 1 else None

    def forward(
        self, x: Float[Tensor, "batch time dim"]
    ) -> tuple[Float[Tensor, "batch time dim"], Float[Tensor, "batch time dim"]]:
        if self.mixture is None:
            trend = moving_average(x, self.kernels[0])
        else:
            averages = torch.stack([moving_average(x, kernel) for kernel in self.kernels], dim=-1)
            trend = (averages * self.mixture(x.unsqueeze(-1)).softmax(dim=-1)).sum(dim=-1)
        return x - trend, trend


class SeasonalLayerNorm(nn.Module):
    """Layer norm over channels, less its mean over time, so that no level is left in the seasonal part."""

    def __init__(self, dim: int):
        super().__init__()
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Float[Tensor, "batch time dim"]) -> Float[Tensor, "batch time dim"]:
        x = self.norm(x)
        return x - x.mean(dim=1, keepdim=True)
