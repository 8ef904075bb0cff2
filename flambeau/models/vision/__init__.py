"""Networks that look at images."""

from flambeau.models.vision.autoencoder import ConvDecoder, ConvEncoder, conv_autoencoder
from flambeau.models.vision.fc_siam import FCSiam
from flambeau.models.vision.random_features import RandomFeatures
from flambeau.models.vision.resnet import ResNet, resnet18, resnet34, resnet50
from flambeau.models.vision.unet import UNet
from flambeau.models.vision.vit import ViT

__all__ = [
    "ConvDecoder",
    "ConvEncoder",
    "FCSiam",
    "RandomFeatures",
    "ResNet",
    "UNet",
    "ViT",
    "conv_autoencoder",
    "resnet18",
    "resnet34",
    "resnet50",
]
