"""A convolutional encoder and the decoder that mirrors it to the exact sizes, for any image size.

Source: Li, Liu, Chen & Rudin, "Deep Learning for Case-Based Reasoning through Prototypes" (AAAI 2018), section 4.1:
3×3 convolutions of stride 2 with "same" padding, 28→14→7→4→2 pixels and a code of 10·2·2 = 40 numbers.
"""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn


class ConvEncoder(nn.Module):
    """3×3 convolutions with ReLU after each, flattened to a code.

    Args:
        image_shape: (channels, height, width) of the input.
        channels: feature maps of each layer.
        strides: stride of each layer, 1 or 2; one number for all. A stride of 2 takes n pixels to ⌈n/2⌉.
        weight_std: standard deviation of the filters at the start, with zero biases (the authors use 0.01); None
            leaves PyTorch's own initialisation.

    Attributes:
        latent_dim: length of the code.
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        channels: Sequence[int] = (32, 32, 32, 10),
        strides: int | Sequence[int] = 2,
        weight_std: float | None = None,
    ):
        super().__init__()
        strides = _per_layer(image_shape, channels, strides)
        widths = [image_shape[0], *channels]
        self.layers = nn.ModuleList(
            nn.Conv2d(before, after, 3, stride, padding=1) for before, after, stride in zip(widths, widths[1:], strides)
        )
        self.image_shape = tuple(image_shape)
        height, width = _sizes(image_shape, strides)[-1]
        self.latent_dim = channels[-1] * height * width
        _initialise(self, weight_std)

    def forward(self, x: Float[Tensor, "batch channel height width"]) -> Float[Tensor, "batch latent"]:
        if x.shape[1:] != self.image_shape:
            raise ValueError(f"x: got images of shape {tuple(x.shape[1:])}, expected {self.image_shape}")
        for layer in self.layers:
            x = layer(x).relu()
        return x.flatten(1)


class ConvDecoder(nn.Module):
    """Transposed convolutions back through the sizes of the :class:`ConvEncoder` of the same arguments.

    Args:
        image_shape, channels, strides, weight_std: those of the encoder.
        sigmoid: squash the last layer to [0, 1], as the paper does; otherwise it is linear.
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        channels: Sequence[int] = (32, 32, 32, 10),
        strides: int | Sequence[int] = 2,
        weight_std: float | None = None,
        sigmoid: bool = True,
    ):
        super().__init__()
        strides = _per_layer(image_shape, channels, strides)
        widths = [image_shape[0], *channels]
        self._sizes = _sizes(image_shape, strides)
        self.code_shape = (channels[-1], *self._sizes[-1])
        self.layers = nn.ModuleList(
            nn.ConvTranspose2d(after, before, 3, stride, padding=1)
            for before, after, stride in zip(widths, widths[1:], strides)
        )
        self.output = nn.Sigmoid() if sigmoid else nn.Identity()
        _initialise(self, weight_std)

    def forward(self, z: Float[Tensor, "batch latent"]) -> Float[Tensor, "batch channel height width"]:
        x = z.unflatten(1, self.code_shape)
        for depth in range(len(self.layers) - 1, 0, -1):
            x = self.layers[depth](x, output_size=self._sizes[depth]).relu()
        return self.output(self.layers[0](x, output_size=self._sizes[0]))


def _sizes(image_shape: Sequence[int], strides: Sequence[int]) -> list[tuple[int, int]]:
    sizes = [(image_shape[1], image_shape[2])]
    for stride in strides:
        sizes.append((-(-sizes[-1][0] // stride), -(-sizes[-1][1] // stride)))
    return sizes


def _per_layer(image_shape: Sequence[int], channels: Sequence[int], strides: int | Sequence[int]) -> list[int]:
    each = [strides] * len(channels) if isinstance(strides, int) else list(strides)
    if len(image_shape) != 3 or min(image_shape) < 1:
        raise ValueError(f"image_shape: got {tuple(image_shape)}, expected (channels, height, width)")
    if len(each) != len(channels) or not channels or min(channels) < 1:
        raise ValueError(f"channels, strides: got {tuple(channels)} and {tuple(each)}, expected one of each per layer")
    if not set(each) <= {1, 2}:
        raise ValueError(f"strides: got {tuple(each)}, expected 1 or 2")
    return each


def _initialise(module: nn.Module, weight_std: float | None) -> None:
    if weight_std is None:
        return
    for name, parameter in module.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
        else:
            nn.init.normal_(parameter, std=weight_std)


def conv_autoencoder(
    image_shape: Sequence[int], *, code_channels: int = 10, weight_std: float | None = None, sigmoid: bool = True
) -> tuple[ConvEncoder, ConvDecoder]:
    """An encoder and its decoder with as many layers as the image needs: halved down to 2 pixels, at least 3 layers.

    28 pixels give the network of the paper; 8 pixels give 8→4→2→2. A square image has a code of 4·``code_channels``.
    """
    halvings = max(1, (max(image_shape[1:]) - 1).bit_length() - 1)
    depth = max(3, halvings)
    channels = [32] * (depth - 1) + [code_channels]
    strides = [2] * halvings + [1] * (depth - halvings)
    encoder = ConvEncoder(image_shape, channels, strides, weight_std)
    return encoder, ConvDecoder(image_shape, channels, strides, weight_std, sigmoid)
