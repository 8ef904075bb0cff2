"""A light U-Net decoder for the features of any pyramid."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

CONV = {2: nn.Conv2d, 3: nn.Conv3d}
CONV_TRANSPOSE = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
BATCH_NORM = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


class LightDecoder(nn.Module):
    """Decoder of SparK (Tian et al. 2023, arXiv 2301.03580, section 3.3): blocks that double the resolution.

    Each block is a transposed convolution 4x4 of stride 2, then twice a 3x3 convolution and batch norm, with a ReLU6
    between; a feature is added before its block. Convolutions begin at N(0, 0.02^2).

    stride: of the coarsest feature, a power of two; there are log2(stride) blocks. width: channels of the first block's
    input, halved by each block. channels: of the image. dims: 2 or 3 spatial axes. Raises ValueError for another
    stride, or a width that cannot be halved as often.
    """

    def __init__(self, stride: int = 32, width: int = 768, channels: int = 3, dims: int = 2):
        super().__init__()
        if stride < 2 or stride & (stride - 1):
            raise ValueError(f"stride must be a power of two of at least 2, got {stride}")
        if dims not in CONV:
            raise ValueError(f"dims must be 2 or 3, got {dims}")
        if width % stride or width < stride:
            raise ValueError(f"width must be a multiple of the stride {stride}, as each block halves it, got {width}")
        self.widths = [width // 2**level for level in range(stride.bit_length())]
        self.blocks = nn.ModuleList(_block(a, b, dims) for a, b in zip(self.widths, self.widths[1:]))
        self.head = CONV[dims](self.widths[-1], channels, 1)
        for module in self.modules():
            if isinstance(module, CONV[dims]):
                nn.init.trunc_normal_(module.weight, std=0.02)
            elif isinstance(module, CONV_TRANSPOSE[dims]):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            else:
                continue
            if module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(
        self, features: Sequence[Float[Tensor, "batch width *positions"] | None]
    ) -> Float[Tensor, "batch channels *size"]:
        """features: from coarse to fine, the first of `width` channels, each of half the channels and twice the
        resolution of the one before; None, or the end of the list, where there is none."""
        x = features[0]
        for level, block in enumerate(self.blocks):
            feature = features[level] if 0 < level < len(features) else None
            x = block(x if feature is None else x + feature)
        return self.head(x)


def _block(in_channels: int, out_channels: int, dims: int) -> nn.Sequential:
    conv, norm = CONV[dims], BATCH_NORM[dims]
    return nn.Sequential(
        CONV_TRANSPOSE[dims](in_channels, in_channels, 4, 2, 1),
        conv(in_channels, in_channels, 3, padding=1, bias=False),
        norm(in_channels),
        nn.ReLU6(inplace=True),
        conv(in_channels, out_channels, 3, padding=1, bias=False),
        norm(out_channels),
    )
