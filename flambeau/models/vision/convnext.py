"""ConvNeXt."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn


class LayerNorm2d(nn.LayerNorm):
    """Layer norm over the second axis, the channels of [batch, channels, *size], of any number of spatial axes."""

    def forward(self, x: Float[Tensor, "batch channels *size"]) -> Float[Tensor, "batch channels *size"]:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class Permute(nn.Module):
    """``x.permute(axes)`` as a module, so that the layers of a block keep the places that weights are named after."""

    def __init__(self, *axes: int):
        super().__init__()
        self.axes = axes

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(self.axes)


class ConvNeXtBlock(nn.Module):
    """Depth-wise 7x7 convolution, layer norm and a two-layer network at each position, scaled, added to the input."""

    def __init__(self, channels: int, layer_scale: float = 1e-6):
        super().__init__()
        self.block = nn.Sequential(
            nn.Conv2d(channels, channels, 7, padding=3, groups=channels),
            Permute(0, 2, 3, 1),
            nn.LayerNorm(channels, eps=1e-6),
            nn.Linear(channels, 4 * channels),
            nn.GELU(),
            nn.Linear(4 * channels, channels),
            Permute(0, 3, 1, 2),
        )
        self.layer_scale = nn.Parameter(torch.full((channels, 1, 1), layer_scale))

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels height width"]:
        return x + self.layer_scale * self.block(x)


class ConvNeXt(nn.Module):
    """ConvNeXt (Liu et al. 2022, arXiv 2201.03545), with the parameter names of torchvision's weights.

    blocks, widths: of each stage (ConvNeXt-T by default). The stem has stride 4, every later stage halves the
    resolution. Without stochastic depth. Raises ValueError when the stages do not match.
    """

    def __init__(
        self,
        blocks: tuple[int, ...] = (3, 3, 9, 3),
        widths: tuple[int, ...] = (96, 192, 384, 768),
        *,
        in_channels: int = 3,
        classes: int = 1000,
        layer_scale: float = 1e-6,
    ):
        super().__init__()
        if len(blocks) != len(widths) or not blocks:
            raise ValueError(f"blocks and widths must be as long as each other, got {blocks} and {widths}")
        stem = nn.Sequential(nn.Conv2d(in_channels, widths[0], 4, 4), LayerNorm2d(widths[0], eps=1e-6))
        features: list[nn.Module] = [stem]
        for stage, (depth, width) in enumerate(zip(blocks, widths)):
            if stage:
                before = widths[stage - 1]
                features.append(nn.Sequential(LayerNorm2d(before, eps=1e-6), nn.Conv2d(before, width, 2, 2)))
            features.append(nn.Sequential(*(ConvNeXtBlock(width, layer_scale) for _ in range(depth))))
        self.features = nn.Sequential(*features)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(
            LayerNorm2d(widths[-1], eps=1e-6), nn.Flatten(1), nn.Linear(widths[-1], classes)
        )
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, x: Float[Tensor, "batch in height width"]) -> Float[Tensor, "batch classes"]:
        return self.classifier(self.avgpool(self.features(x)))


def convnext_tiny(in_channels: int = 3, classes: int = 1000) -> ConvNeXt:
    """ConvNeXt-T."""
    return ConvNeXt(in_channels=in_channels, classes=classes)


def convnext_small(in_channels: int = 3, classes: int = 1000) -> ConvNeXt:
    """ConvNeXt-S."""
    return ConvNeXt((3, 3, 27, 3), in_channels=in_channels, classes=classes)
