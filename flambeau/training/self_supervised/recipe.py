"""A self-supervised method with how it is trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from flambeau.training.trainer import Trainer


@dataclass(frozen=True)
class Recipe:
    """method: ``method(backbone, ...)``, the module to train. batch_size: images a step."""

    method: Callable[..., nn.Module]
    training: Trainer
    batch_size: int
