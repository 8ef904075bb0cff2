"""What is minimised."""

from flambeau.objectives.prototype import PrototypeLoss

__all__ = [
    "PrototypeLoss",
]
