"""Networks over token sequences."""

from flambeau.models.language.decoder import Decoder

__all__ = ["Decoder"]
