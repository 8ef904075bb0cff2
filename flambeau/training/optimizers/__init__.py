"""Optimisers that torch.optim does not have."""

from flambeau.training.optimizers.lamb import LAMB
from flambeau.training.optimizers.lars import LARS
from flambeau.training.optimizers.lazy_adam import LazyAdam

__all__ = ["LAMB", "LARS", "LazyAdam"]
