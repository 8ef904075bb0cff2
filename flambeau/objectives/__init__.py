"""What is minimised."""

from flambeau.objectives.contrastive import info_nce, nt_xent
from flambeau.objectives.prototype import PrototypeLoss

__all__ = [
    "PrototypeLoss",
    "info_nce",
    "nt_xent",
]
