"""Random convolutional features."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


class RandomFeatures(nn.Module):
    """Random convolutional features (MOSAIKS: Rolf et al. 2021, doi 10.1038/s41467-021-24638-z): fixed, never trained.

    Each of features / 2 filters gives two numbers a picture, the means of ReLU(filter + bias) and ReLU(-filter - bias).
    Filters are Gaussian, or whitened patches of pictures given to :meth:`fit`.
    Raises ValueError for an odd number of features.
    """

    weight: Tensor
    bias: Tensor

    def __init__(
        self,
        in_channels: int,
        features: int = 64,
        *,
        kernel: int = 3,
        bias: float = -1.0,
        mode: Literal["gaussian", "empirical"] = "gaussian",
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        if features < 2 or features % 2:
            raise ValueError(f"features must be an even number of at least 2, got {features}")
        if mode not in ("gaussian", "empirical"):
            raise ValueError(f"mode must be 'gaussian' or 'empirical', got {mode!r}")
        self.mode, self.generator = mode, generator
        weight = torch.randn(features // 2, in_channels, kernel, kernel, generator=generator)
        self.register_buffer("weight", weight)
        self.register_buffer("bias", torch.full((features // 2,), float(bias)))

    def fit(self, images: Float[Tensor, "batch channels height width"]) -> RandomFeatures:
        """Filters from random patches of pictures, whitened (ZCA), in place of Gaussian ones."""
        if self.mode != "empirical":
            raise ValueError("fit needs mode='empirical'")
        count, channels, side, _ = self.weight.shape
        patches = F.unfold(images, side).transpose(1, 2).flatten(0, 1)
        if len(patches) < count:
            raise ValueError(f"images have {len(patches)} patches, fewer than the {count} filters")
        centered = patches - patches.mean(1, keepdim=True)
        centered = centered / (centered.norm(dim=1, keepdim=True) + 1e-6)
        values, vectors = torch.linalg.eigh(torch.cov(centered.T))
        whiten = vectors @ torch.diag((values.clamp_min(0) + 1e-3).rsqrt()) @ vectors.T
        chosen = torch.randperm(len(patches), generator=self.generator)[:count].to(patches.device)
        filters = F.normalize(centered[chosen] @ whiten, dim=1)
        self.weight = filters.reshape(count, channels, side, side)
        return self

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch features"]:
        y = F.conv2d(x, self.weight)
        bias = self.bias.view(1, -1, 1, 1)
        return torch.cat([F.relu(y + bias).mean((2, 3)), F.relu(-y - bias).mean((2, 3))], 1)
