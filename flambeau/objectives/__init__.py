"""What is minimised."""

from flambeau.objectives.contrastive import info_nce, nt_xent
from flambeau.objectives.masked_language import masked_language_loss
from flambeau.objectives.normalized_mse import normalized_mse
from flambeau.objectives.prototype import PrototypeLoss
from flambeau.objectives.sinkhorn import sinkhorn

__all__ = [
    "PrototypeLoss",
    "info_nce",
    "masked_language_loss",
    "normalized_mse",
    "nt_xent",
    "sinkhorn",
]
