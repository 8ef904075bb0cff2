"""Networks that look at images."""

from flambeau.models.vision.autoencoder import ConvDecoder, ConvEncoder, conv_autoencoder

__all__ = ["ConvDecoder", "ConvEncoder", "conv_autoencoder"]
