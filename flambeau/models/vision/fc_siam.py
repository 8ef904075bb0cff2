"""Fully convolutional Siamese networks for change between two pictures."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from flambeau.models.vision.unet import double_conv


class FCSiam(nn.Module):
    """FC-Siam-conc and FC-Siam-diff (Daudt et al. 2018, arXiv 1810.08462): one encoder, seen twice, one decoder.

    fuse: the decoder sees both pictures' feature maps (``"conc"``) or their absolute difference (``"diff"``).
    Raises ValueError for another fuse.
    """

    def __init__(
        self,
        in_channels: int = 3,
        classes: int = 2,
        *,
        width: int = 16,
        depth: int = 3,
        fuse: Literal["conc", "diff"] = "diff",
    ):
        super().__init__()
        if fuse not in ("conc", "diff"):
            raise ValueError(f"fuse must be 'conc' or 'diff', got {fuse!r}")
        self.fuse = fuse
        widths = [width * 2**level for level in range(depth + 1)]
        times = 2 if fuse == "conc" else 1
        self.conv1 = double_conv(in_channels, width)
        self.down = nn.ModuleList(double_conv(a, b) for a, b in zip(widths, widths[1:]))
        self.up = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, 2) for a, b in zip(widths, widths[1:]))
        self.merge = nn.ModuleList(double_conv((1 + times) * a, a) for a in widths[:-1])
        self.head = nn.Conv2d(width, classes, 1)

    def encode(self, x: Float[Tensor, "batch in_channels height width"]) -> list[Tensor]:
        """Feature maps of one picture, from full resolution to the coarsest."""
        maps = [self.conv1(x)]
        for down in self.down:
            maps.append(down(F.max_pool2d(maps[-1], 2)))
        return maps

    def forward(
        self,
        before: Float[Tensor, "batch in_channels height width"],
        after: Float[Tensor, "batch in_channels height width"],
    ) -> Float[Tensor, "batch classes height width"]:
        multiple = 2 ** len(self.down)
        if before.shape != after.shape or before.shape[-1] % multiple or before.shape[-2] % multiple:
            raise ValueError(
                f"before and after must be alike and their sides multiples of {multiple}, got "
                f"{tuple(before.shape)} and {tuple(after.shape)}"
            )
        one, two = self.encode(before), self.encode(after)
        y = one[-1] - two[-1] if self.fuse == "diff" else two[-1]
        y = y.abs() if self.fuse == "diff" else y
        for level in reversed(range(len(self.up))):
            seen = [(one[level] - two[level]).abs()] if self.fuse == "diff" else [one[level], two[level]]
            y = self.merge[level](torch.cat([self.up[level](y), *seen], 1))
        return self.head(y)
