"""U-Net for images of any number of bands."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


class UNet(nn.Module):
    """U-Net (Ronneberger et al. 2015, arXiv 1505.04597) with batch norm and padded convolutions.

    width: channels at full resolution, doubled at each of the `depth` halvings; (8, 4) and (16, 3) both have half a
    million parameters, the first a third of the operations. Height and width may be any; inside, they are padded to a
    multiple of 2^depth. Raises ValueError when a size is below 1.
    """

    def __init__(self, in_channels: int = 3, classes: int = 2, *, width: int = 8, depth: int = 4):
        super().__init__()
        for name, value in (("in_channels", in_channels), ("classes", classes), ("width", width), ("depth", depth)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        widths = [width * 2**level for level in range(depth + 1)]
        self.conv1 = double_conv(in_channels, width)
        self.down = nn.ModuleList(double_conv(a, b) for a, b in zip(widths, widths[1:]))
        self.up = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, 2) for a, b in zip(widths, widths[1:]))
        self.merge = nn.ModuleList(double_conv(2 * a, a) for a in widths[:-1])
        self.head = nn.Conv2d(width, classes, 1)

    def forward(
        self, x: Float[Tensor, "batch in_channels height width"]
    ) -> Float[Tensor, "batch classes height width"]:
        height, width = x.shape[-2:]
        multiple = 2 ** len(self.down)
        y = F.pad(x, (0, -width % multiple, 0, -height % multiple), mode="replicate")
        y = self.conv1(y)
        skips = [y]
        for down in self.down:
            y = down(F.max_pool2d(y, 2))
            skips.append(y)
        for level in reversed(range(len(self.up))):
            y = self.merge[level](torch.cat([skips[level], self.up[level](y)], 1))
        return self.head(y)[..., :height, :width]


def double_conv(in_channels: int, out_channels: int) -> nn.Sequential:
    """Twice a 3x3 convolution, batch norm and ReLU."""
    layers: list[nn.Module] = []
    for channels in (in_channels, out_channels):
        layers += [nn.Conv2d(channels, out_channels, 3, padding=1, bias=False), nn.BatchNorm2d(out_channels), nn.ReLU()]
    return nn.Sequential(*layers)
