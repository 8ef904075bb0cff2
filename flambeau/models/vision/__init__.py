"""Networks that look at images."""

from flambeau.models.vision.autoencoder import ConvDecoder, ConvEncoder, conv_autoencoder
from flambeau.models.vision.conv_net import ConvNet
from flambeau.models.vision.conv_stages import ConvStages
from flambeau.models.vision.convnext import ConvNeXt, convnext_small, convnext_tiny
from flambeau.models.vision.densenet import DenseNetBC
from flambeau.models.vision.fc_siam import FCSiam
from flambeau.models.vision.random_features import RandomFeatures
from flambeau.models.vision.resnet import ResNet, cifar_resnet, resnet18, resnet34, resnet50
from flambeau.models.vision.unet import UNet
from flambeau.models.vision.vit import ViT
from flambeau.models.vision.wide_resnet import WideResNet

__all__ = [
    "ConvDecoder",
    "ConvEncoder",
    "ConvNeXt",
    "ConvNet",
    "ConvStages",
    "DenseNetBC",
    "FCSiam",
    "RandomFeatures",
    "ResNet",
    "UNet",
    "ViT",
    "WideResNet",
    "cifar_resnet",
    "conv_autoencoder",
    "convnext_small",
    "convnext_tiny",
    "resnet18",
    "resnet34",
    "resnet50",
]
