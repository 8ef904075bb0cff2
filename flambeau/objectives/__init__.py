"""What is minimised."""

from flambeau.objectives.contrastive import info_nce, nt_xent
from flambeau.objectives.masked_language import masked_language_loss
from flambeau.objectives.prototype import PrototypeLoss

__all__ = [
    "PrototypeLoss",
    "info_nce",
    "masked_language_loss",
    "nt_xent",
]
