"""ResNet."""

from __future__ import annotations

from collections import OrderedDict
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a residual connection."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int = 1):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _projection(in_channels, width, stride)

    def forward(self, x: Float[Tensor, "batch in height width"]) -> Float[Tensor, "batch out height2 width2"]:
        shortcut = x if self.downsample is None else self.downsample(x)
        y = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(y)) + shortcut)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions; the stride is in the 3x3 one (ResNet 1.5, as in torchvision's weights)."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int = 1):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _projection(in_channels, 4 * width, stride)

    def forward(self, x: Float[Tensor, "batch in height width"]) -> Float[Tensor, "batch out height2 width2"]:
        shortcut = x if self.downsample is None else self.downsample(x)
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        return self.relu(self.bn3(self.conv3(y)) + shortcut)


class ResNet(nn.Module):
    """Residual network (He et al. 2016, arXiv 1512.03385), with the parameter names of torchvision's weights.

    blocks: residual blocks of each stage; every stage but the first halves the resolution. widths: channels of each
    stage, before the bottleneck's expansion by 4. bottleneck: bottleneck blocks instead of basic ones. stem:
    "imagenet" is a 7x7 convolution of stride 2 and a max-pool, "small" one 3x3 convolution at full resolution (for
    images of about 32 pixels). Raises ValueError when the stages do not match or there are more than eight.
    """

    def __init__(
        self,
        blocks: tuple[int, ...] = (2, 2, 2, 2),
        widths: tuple[int, ...] = (64, 128, 256, 512),
        *,
        bottleneck: bool = False,
        in_channels: int = 3,
        classes: int = 1000,
        stem: Literal["imagenet", "small"] = "imagenet",
    ):
        super().__init__()
        if len(blocks) != len(widths) or not 1 <= len(blocks) <= 8:
            raise ValueError(f"blocks and widths must be as long as each other, 1 to 8 stages, got {blocks}, {widths}")
        if stem not in ("imagenet", "small"):
            raise ValueError(f"stem must be 'imagenet' or 'small', got {stem!r}")
        block = Bottleneck if bottleneck else BasicBlock
        channels = widths[0]
        kernel, stride = (7, 2) if stem == "imagenet" else (3, 1)
        self.conv1 = nn.Conv2d(in_channels, channels, kernel, stride, kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1) if stem == "imagenet" else nn.Identity()
        self.stage_names = [f"layer{number}" for number in range(1, len(blocks) + 1)]
        for number, (name, depth, width) in enumerate(zip(self.stage_names, blocks, widths, strict=True)):
            layers = []
            for place in range(depth):
                layers.append(block(channels, width, 2 if number > 0 and place == 0 else 1))
                channels = width * block.expansion
            self.add_module(name, nn.Sequential(*layers))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, classes)
        self.features = channels
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def stages(self, x: Float[Tensor, "batch in height width"]) -> OrderedDict[str, Tensor]:
        """Feature maps of the stem (`"stem"`, before pooling) and of every stage (`"layer1"`, ...)."""
        maps = OrderedDict(stem=self.relu(self.bn1(self.conv1(x))))
        y = self.maxpool(maps["stem"])
        for name in self.stage_names:
            y = maps[name] = self.get_submodule(name)(y)
        return maps

    def forward(self, x: Float[Tensor, "batch in height width"]) -> Float[Tensor, "batch classes"]:
        y = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for name in self.stage_names:
            y = self.get_submodule(name)(y)
        return self.fc(torch.flatten(self.avgpool(y), 1))


def resnet18(in_channels: int = 3, classes: int = 1000) -> ResNet:
    """ResNet-18 for ImageNet-sized images."""
    return ResNet((2, 2, 2, 2), in_channels=in_channels, classes=classes)


def resnet34(in_channels: int = 3, classes: int = 1000) -> ResNet:
    """ResNet-34 for ImageNet-sized images."""
    return ResNet((3, 4, 6, 3), in_channels=in_channels, classes=classes)


def resnet50(in_channels: int = 3, classes: int = 1000) -> ResNet:
    """ResNet-50 for ImageNet-sized images."""
    return ResNet((3, 4, 6, 3), bottleneck=True, in_channels=in_channels, classes=classes)


def cifar_resnet(depth: int = 20, in_channels: int = 3, classes: int = 10) -> ResNet:
    """ResNet of 6n + 2 layers for images of about 32 pixels (He et al. 2016, section 4.2): 20, 32, 44, 56, 110.

    Where the resolution halves, the shortcut is a projection ("option B") rather than padded zeros. Raises ValueError
    for another depth.
    """
    if depth < 8 or (depth - 2) % 6:
        raise ValueError(f"depth must be 6n + 2 (20, 32, 44, 56, 110, ...), got {depth}")
    return ResNet(((depth - 2) // 6,) * 3, (16, 32, 64), in_channels=in_channels, classes=classes, stem="small")


def _projection(in_channels: int, out_channels: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels))
