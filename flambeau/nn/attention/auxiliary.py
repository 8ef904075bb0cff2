"""Losses that layers add to the model's own."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn


class AuxiliaryLoss:
    """Holds the loss of a layer's last training forward; copies and pickles of a model do not take it along."""

    def __init__(self) -> None:
        self.value: Tensor | None = None

    def __deepcopy__(self, memo: Any) -> AuxiliaryLoss:
        return AuxiliaryLoss()

    def __reduce__(self) -> tuple[type[AuxiliaryLoss], tuple[()]]:
        return AuxiliaryLoss, ()


def collect_aux(model: nn.Module) -> Float[Tensor, ""]:
    """Sum of the auxiliary losses of the model's last forward, each taken once; 0 if there were none.

    ``loss = objective(model(x)) + collect_aux(model)``
    """
    total: Tensor | None = None
    for module in model.modules():
        for held in vars(module).values():
            if isinstance(held, AuxiliaryLoss) and held.value is not None:
                total = held.value if total is None else total + held.value
                held.value = None
    return torch.zeros(()) if total is None else total
