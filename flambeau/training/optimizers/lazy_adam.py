"""Adam that updates only the looked-up rows of sparse embeddings, and everything else as usual."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class LazyAdam(torch.optim.Optimizer):
    """Adam (Kingma and Ba 2015) for models with sparse and dense gradients.

    A sparse gradient touches only its rows: their moments move and their weights are updated as in
    ``torch.optim.SparseAdam``, the others stay as they are. A dense gradient is treated as in ``torch.optim.Adam``.

    Args:
        params: parameters, or groups of them.
        lr: step size.
        betas: decay of both moments.
        eps: added to the root of the second, corrected for its bias as in Adam (``SparseAdam`` does not).

    Raises:
        ValueError: a value out of its range.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ):
        if lr < 0 or eps <= 0 or not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"lr must be >= 0, eps > 0 and betas in [0, 1), got {lr}, {eps} and {betas}")
        super().__init__(params, dict(lr=lr, betas=betas, eps=eps))

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:  # type: ignore[override]
        """One update."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            (beta1, beta2), eps = group["betas"], group["eps"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["step"] = 0
                    state["exp_avg"] = torch.zeros_like(parameter)
                    state["exp_avg_sq"] = torch.zeros_like(parameter)
                state["step"] += 1
                first, second = state["exp_avg"], state["exp_avg_sq"]
                rate = group["lr"] * (1 - beta2 ** state["step"]) ** 0.5 / (1 - beta1 ** state["step"])
                corrected = eps * (1 - beta2 ** state["step"]) ** 0.5
                if not parameter.grad.is_sparse:
                    first.lerp_(parameter.grad, 1 - beta1)
                    second.mul_(beta2).addcmul_(parameter.grad, parameter.grad, value=1 - beta2)
                    parameter.addcdiv_(first, second.sqrt().add_(corrected), value=-rate)
                    continue
                gradient = parameter.grad.coalesce()
                rows, values = gradient.indices()[0], gradient.values()
                moved = first[rows].lerp_(values, 1 - beta1)
                spread = second[rows].mul_(beta2).addcmul_(values, values, value=1 - beta2)
                first[rows], second[rows] = moved, spread
                parameter.index_add_(0, rows, moved / spread.sqrt().add_(corrected), alpha=-rate)
        return loss
