"""A plain convolutional network for small images: what students and teachers of small experiments are made of."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn


class ConvNet(nn.Sequential):
    """3x3 convolutions with batch normalisation and ReLU, ``layer1``, ``layer2``, ..., means, a linear head.

    A sequence of modules from the image to the logits, so that each prefix of it is a network of its own.

    Args:
        widths: channels of each layer.
        strides: of each layer; 1 everywhere if not given.
        pool: the features are averaged to `pool` x `pool` values a channel.
        in_channels: of the image.
        classes: of the head.

    Raises:
        ValueError: no layer, or as many strides as there are no widths.
    """

    def __init__(
        self,
        widths: Sequence[int] = (32, 64),
        strides: Sequence[int] | None = None,
        *,
        pool: int = 1,
        in_channels: int = 1,
        classes: int = 10,
    ):
        strides = (1,) * len(widths) if strides is None else strides
        if not widths or len(strides) != len(widths):
            raise ValueError(f"widths and strides: expected as many of each, at least one, got {widths}, {strides}")
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        channels = in_channels
        for number, (width, stride) in enumerate(zip(widths, strides), 1):
            conv = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
            layers[f"layer{number}"] = nn.Sequential(conv, nn.BatchNorm2d(width), nn.ReLU())
            channels = width
        super().__init__(
            layers
            | dict(
                avgpool=nn.AdaptiveAvgPool2d(pool),
                flatten=nn.Flatten(),
                fc=nn.Linear(channels * pool**2, classes),
            )
        )

    def forward(self, x: Float[Tensor, "batch in height width"]) -> Float[Tensor, "batch classes"]:
        return super().forward(x)
