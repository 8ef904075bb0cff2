"""DenseNet-BC for small images."""

from __future__ import annotations

from collections import OrderedDict

import torch
from jaxtyping import Float
from torch import Tensor, nn


class DenseLayer(nn.Module):
    """A 1x1 bottleneck of 4 `growth` channels and a 3x3 convolution, whose output is appended to the input."""

    def __init__(self, in_channels: int, growth: int):
        super().__init__()
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(in_channels, 4 * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(4 * growth)
        self.relu2 = nn.ReLU()
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, 1, 1, bias=False)

    def forward(self, x: Float[Tensor, "batch in height width"]) -> Float[Tensor, "batch out height width"]:
        y = self.conv2(self.relu2(self.norm2(self.conv1(self.relu1(self.norm1(x))))))
        return torch.cat([x, y], 1)


class DenseNetBC(nn.Module):
    """DenseNet-BC with `depth` layers and growth rate `growth` (Huang et al. 2017, arXiv 1608.06993, section 4.2).

    Three dense blocks of (depth - 4) / 6 layers; transitions halve resolution and channels. ``features`` has the names
    of torchvision's DenseNet. Raises ValueError unless depth is 6n + 4.
    """

    def __init__(self, depth: int = 100, growth: int = 12, *, in_channels: int = 3, classes: int = 10):
        super().__init__()
        if depth < 10 or (depth - 4) % 6:
            raise ValueError(f"depth must be 6n + 4 (10, 40, 100, 190, 250, ...), got {depth}")
        if growth < 1:
            raise ValueError(f"growth must be at least 1, got {growth}")
        channels = 2 * growth
        self.features = nn.Sequential(OrderedDict(conv0=nn.Conv2d(in_channels, channels, 3, 1, 1, bias=False)))
        for number in (1, 2, 3):
            layers = OrderedDict()
            for place in range((depth - 4) // 6):
                layers[f"denselayer{place + 1}"] = DenseLayer(channels, growth)
                channels += growth
            self.features.add_module(f"denseblock{number}", nn.Sequential(layers))
            if number < 3:
                self.features.add_module(f"transition{number}", _transition(channels, channels // 2))
                channels //= 2
        self.features.add_module("norm5", nn.BatchNorm2d(channels))
        self.relu = nn.ReLU()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Float[Tensor, "batch in height width"]) -> Float[Tensor, "batch classes"]:
        return self.classifier(torch.flatten(self.avgpool(self.relu(self.features(x))), 1))


def _transition(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(
            norm=nn.BatchNorm2d(in_channels),
            relu=nn.ReLU(),
            conv=nn.Conv2d(in_channels, out_channels, 1, bias=False),
            pool=nn.AvgPool2d(2),
        )
    )
