"""Whole networks, grouped by what they look at."""

from flambeau.models.autoencoder import autoencoder_for
from flambeau.models.prototype_net import PrototypeNet, PrototypeOutput

__all__ = [
    "PrototypeNet",
    "PrototypeOutput",
    "autoencoder_for",
]
