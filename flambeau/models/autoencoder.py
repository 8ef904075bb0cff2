"""An autoencoder pair for inputs of a given shape."""

from collections.abc import Sequence

from torch import nn

from flambeau.models.tabular.autoencoder import MLPDecoder, MLPEncoder
from flambeau.models.vision.autoencoder import conv_autoencoder


def autoencoder_for(shape: Sequence[int], weight_std: float | None = None) -> tuple[nn.Module, nn.Module]:
    """Encoder and decoder: convolutional for images (channels, height, width), a perceptron for rows (features,).

    Args:
        weight_std: standard deviation of the convolutions' filters at the start; None for PyTorch's own.

    Raises:
        ValueError: a shape of another length.
    """
    if len(shape) == 3:
        return conv_autoencoder(shape, weight_std=weight_std)
    if len(shape) != 1:
        raise ValueError(f"shape: got {tuple(shape)}, expected (channels, height, width) or (features,)")
    return MLPEncoder(shape[0]), MLPDecoder(shape[0])
