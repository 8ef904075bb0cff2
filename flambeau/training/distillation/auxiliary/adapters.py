"""Modules that make a student's feature map comparable with a teacher's."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


class ConvAdapter(nn.Sequential):
    """A convolution that keeps the size, optionally normalised and rectified: [batch, in, h, w] -> [batch, out, h, w].

    - hint regressor (FitNet), affinity adapter (KTAAD): the convolution alone
    - connector of activation boundaries (AB): ``kernel_size=1, norm=True``
    - channel correlation (ICKD): ``kernel_size=3, norm=True``
    - feature adapter (KTAAD): ``kernel_size=3, norm=True, relu=True``

    Raises ValueError for an even kernel, which cannot keep the size.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, kernel_size: int = 1, norm: bool = False, relu: bool = False
    ):
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size: got {kernel_size}, expected an odd number")
        layers: list[nn.Module] = [
            nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=not norm)
        ]
        if norm:
            layers.append(nn.BatchNorm2d(out_channels))
        if relu:
            layers.append(nn.ReLU())
        super().__init__(*layers)


class Translator(nn.Sequential):
    """Three 3x3 convolutions, of in, out and out channels, each with LeakyReLU(0.1): factor transfer's student side.

    Kim, Park & Kwak 2018, arXiv 1802.04977. It also encodes in the `Paraphraser`. norm: BatchNorm before each
    activation.
    """

    def __init__(self, in_channels: int, out_channels: int, *, norm: bool = True):
        layers: list[nn.Module] = []
        for before, after in ((in_channels, in_channels), (in_channels, out_channels), (out_channels, out_channels)):
            layers += [nn.Conv2d(before, after, 3, padding=1), *activation(after, norm)]
        super().__init__(*layers)


class Paraphraser(nn.Module):
    """Autoencoder of a teacher's feature map, which gives its factors (Kim, Park & Kwak 2018, arXiv 1802.04977).

    The encoder is a `Translator` to rate·channels, the decoder its mirror of transposed convolutions. A first stage
    trains it to reproduce the feature map (mean squared error); a second one matches the student's translation with
    the factors.

    Args:
        channels: of the feature map.
        rate: k, the factors' channels per channel.
        norm: BatchNorm before each activation.
        decode: whether the call gives the reproduction (first stage) or the factors (second stage). The parameters are
            the same, so the second stage loads what the first one saved.

    Raises:
        ValueError: a rate that leaves no channel.
    """

    def __init__(self, channels: int, rate: float = 0.5, *, norm: bool = True, decode: bool = True):
        super().__init__()
        factors = int(channels * rate)
        if factors < 1:
            raise ValueError(f"rate: got {rate} of {channels} channels, expected at least one channel")
        self.encoder = Translator(channels, factors, norm=norm)
        layers: list[nn.Module] = []
        for before, after in ((factors, factors), (factors, channels), (channels, channels)):
            layers += [nn.ConvTranspose2d(before, after, 3, padding=1), *activation(after, norm)]
        self.decoder = nn.Sequential(*layers)
        self.decode = decode

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch outputs height width"]:
        factors = self.encoder(x)
        return self.decoder(factors) if self.decode else factors


def activation(channels: int, norm: bool) -> list[nn.Module]:
    """What follows a convolution of the paraphraser and the translator."""
    return [nn.BatchNorm2d(channels), nn.LeakyReLU(0.1)] if norm else [nn.LeakyReLU(0.1)]


class VIDRegressor(nn.Module):
    """Mean and variance of the teacher's feature map, from the student's (Ahn et al. 2019, arXiv 1904.05835).

    The mean comes from three 1x1 convolutions without bias; the variance, one for each channel, is softplus(a) + eps
    and does not depend on the input.

    Args:
        in_channels, out_channels: of the student's and the teacher's feature map.
        middle_channels: between the convolutions; the teacher's if not given.
        variance: at the start.
        eps: the smallest variance.

    x: [batch, in_channels, h, w] -> (mean [batch, out_channels, h, w], variance [1, out_channels, 1, 1]), as `VIDLoss`
    takes them. Raises ValueError for a variance that does not exceed eps, or eps below 0.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        middle_channels: int | None = None,
        *,
        variance: float = 5.0,
        eps: float = 1e-5,
    ):
        super().__init__()
        if not 0 <= eps < variance:
            raise ValueError(f"variance, eps: got {variance} and {eps}, expected 0 <= eps < variance")
        middle = middle_channels or out_channels
        self.mean = nn.Sequential(
            nn.Conv2d(in_channels, middle, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(middle, middle, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(middle, out_channels, 1, bias=False),
        )
        self.raw_variance = nn.Parameter(torch.full((out_channels,), math.log(math.expm1(variance - eps))))
        self.eps = eps

    def forward(
        self, x: Float[Tensor, "batch channels height width"]
    ) -> tuple[Float[Tensor, "batch outputs height width"], Float[Tensor, "1 outputs 1 1"]]:
        return self.mean(x), F.softplus(self.raw_variance)[None, :, None, None] + self.eps
