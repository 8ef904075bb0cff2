"""Networks over token sequences."""

from flambeau.models.language.bert import BERT
from flambeau.models.language.decoder import Decoder
from flambeau.models.language.gpt import GPT

__all__ = ["BERT", "GPT", "Decoder"]
