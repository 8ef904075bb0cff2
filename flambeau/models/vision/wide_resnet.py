"""Wide residual networks."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


class WideBlock(nn.Module):
    """Normalisation and activation before each of two 3x3 convolutions, dropout between them."""

    def __init__(self, in_channels: int, width: int, stride: int = 1, dropout: float = 0.0):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        changes = stride != 1 or in_channels != width
        self.shortcut = nn.Conv2d(in_channels, width, 1, stride, bias=False) if changes else None

    def forward(self, x: Float[Tensor, "batch in height width"]) -> Float[Tensor, "batch out height2 width2"]:
        y = F.relu(self.bn1(x))
        shortcut = x if self.shortcut is None else self.shortcut(y)
        return self.conv2(self.dropout(F.relu(self.bn2(self.conv1(y))))) + shortcut


class WideResNet(nn.Module):
    """WRN-`depth`-`widen` for images of about 32 pixels (Zagoruyko and Komodakis 2016, arXiv 1605.07146, Table 1).

    depth: 6n + 4 layers, n blocks in each of the three stages ``layer1`` to ``layer3`` of 16, 32 and 64 times `widen`
    channels. dropout: between the convolutions of a block. Raises ValueError for another depth or `widen` below 1.
    """

    def __init__(
        self, depth: int = 28, widen: int = 10, *, dropout: float = 0.0, in_channels: int = 3, classes: int = 10
    ):
        super().__init__()
        if depth < 10 or (depth - 4) % 6:
            raise ValueError(f"depth must be 6n + 4 (10, 16, 22, 28, 40, ...), got {depth}")
        if widen < 1:
            raise ValueError(f"widen must be at least 1, got {widen}")
        self.conv1 = nn.Conv2d(in_channels, 16, 3, 1, 1, bias=False)
        channels = 16
        for number, width in enumerate((16 * widen, 32 * widen, 64 * widen), 1):
            blocks = []
            for place in range((depth - 4) // 6):
                blocks.append(WideBlock(channels, width, 2 if number > 1 and place == 0 else 1, dropout))
                channels = width
            self.add_module(f"layer{number}", nn.Sequential(*blocks))
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Float[Tensor, "batch in height width"]) -> Float[Tensor, "batch classes"]:
        y = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        return self.fc(torch.flatten(self.avgpool(self.relu(self.bn1(y))), 1))
