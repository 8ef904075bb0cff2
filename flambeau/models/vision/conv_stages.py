"""A small convolutional network for small images."""

from __future__ import annotations

from collections import OrderedDict

from jaxtyping import Float
from torch import Tensor, nn


class ConvStages(nn.Module):
    """Stages of two 3x3 convolutions with BatchNorm and ReLU; the first of each halves the resolution.

    widths: channels of the stages. Raises ValueError without any.
    """

    def __init__(self, widths: tuple[int, ...] = (24, 48, 96), *, in_channels: int = 1):
        super().__init__()
        if not widths or min(widths) < 1:
            raise ValueError(f"widths must be positive numbers, got {widths}")
        self.stage_names = [f"stage{number}" for number in range(1, len(widths) + 1)]
        before = in_channels
        for name, width in zip(self.stage_names, widths):
            layers = [*_layer(before, width, 2), *_layer(width, width, 1)]
            self.add_module(name, nn.Sequential(*layers))
            before = width
        self.features = before

    def stages(self, x: Float[Tensor, "batch channels height width"]) -> OrderedDict[str, Tensor]:
        """Feature maps of every stage (`"stage1"`, ...), each half as high and wide as the one before."""
        maps: OrderedDict[str, Tensor] = OrderedDict()
        for name in self.stage_names:
            x = maps[name] = self.get_submodule(name)(x)
        return maps

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch features h w"]:
        return self.stages(x)[self.stage_names[-1]]


def _layer(before: int, width: int, stride: int) -> list[nn.Module]:
    return [nn.Conv2d(before, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
