"""Networks that look at images."""

from flambeau.models.vision.autoencoder import ConvDecoder, ConvEncoder, conv_autoencoder
from flambeau.models.vision.resnet import ResNet, resnet18, resnet34, resnet50
from flambeau.models.vision.vit import ViT

__all__ = ["ConvDecoder", "ConvEncoder", "ResNet", "ViT", "conv_autoencoder", "resnet18", "resnet34", "resnet50"]
