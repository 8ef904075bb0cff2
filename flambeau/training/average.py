"""Exponential moving average of a model's weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from flambeau.training.processes import like


class WeightAverage:
    """``average <- d average + (1 - d) weight`` after each step, with ``d = min(decay, (1 + t) / (10 + t))``.

    The bound on `d` in the first updates t = 1, 2, ... lets the average forget the initial weights, as in TensorFlow's
    ``ExponentialMovingAverage(num_updates=...)``. Buffers (running statistics) are not averaged.

    Args:
        model: whose parameters are averaged; their present values are the start.
        decay: in [0, 1).

    Raises:
        ValueError: `decay` out of range.
    """

    def __init__(self, model: nn.Module, decay: float):
        if not 0 <= decay < 1:
            raise ValueError(f"decay must lie in [0, 1), got {decay}")
        self.decay = decay
        self.updates = 0
        named = {name.replace("_orig_mod.", ""): p for name, p in model.named_parameters() if p.is_floating_point()}
        self.names = list(named)
        whole = [parameter.data for parameter in named.values()]
        self._saved = [weight.clone() for weight in whole]
        # Of a weight that is spread over processes, each averages the part that it holds.
        self.weights = [weight.to_local() if hasattr(weight, "to_local") else weight for weight in whole]
        self.average = [weight.to_local() if hasattr(weight, "to_local") else weight for weight in self._saved]

    @torch.no_grad()
    def update(self) -> None:
        """Take the model's present weights into the average."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(self.average, self.weights, 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model has the averaged weights inside, and its own again afterwards."""
        own = [weight.clone() for weight in self.weights]
        self.copy_to_model()
        try:
            yield
        finally:
            torch._foreach_copy_(self.weights, own)

    def copy_to_model(self) -> None:
        """Overwrite the model's weights with the average."""
        torch._foreach_copy_(self.weights, self.average)

    def state_dict(self) -> dict[str, Any]:
        """The average by parameter name, and the number of updates."""
        return {"updates": self.updates, "weights": dict(zip(self.names, self._saved))}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`, in place."""
        self.updates = state["updates"]
        saved: dict[str, Tensor] = state["weights"]
        for name, average in zip(self.names, self._saved):
            average.copy_(like(average, saved[name]))
