"""Layer-wise adaptive moments."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class LAMB(torch.optim.Optimizer):
    """Adam whose step has the length of the layer's weights (You et al. 2020, arXiv 1904.00962, algorithm 2).

    ``r = m^ / (sqrt(v^) + eps)``, ``u = r + weight_decay w``, ``w <- w - lr |w| / |u| u``, with Adam's bias-corrected
    moments. A layer without weights or without a step has factor 1.

    exclude_1d: biases and norms (parameters of one axis or none) are trained by Adam without weight decay.

    Raises:
        ValueError: a value out of range.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
        exclude_1d: bool = True,
    ):
        for name, value in (("lr", lr), ("eps", eps), ("weight_decay", weight_decay)):
            if not value >= 0:
                raise ValueError(f"{name} must not be negative, got {value}")
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas must lie in [0, 1), got {betas}")
        super().__init__(
            params, dict(lr=lr, betas=tuple(betas), eps=eps, weight_decay=weight_decay, exclude_1d=exclude_1d)
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            steps = self._adam(group, params)
            adapted = [place for place, p in enumerate(params) if p.ndim > 1 or not group["exclude_1d"]]
            if adapted:
                weights, moves = [params[place] for place in adapted], [steps[place] for place in adapted]
                torch._foreach_add_(moves, weights, alpha=group["weight_decay"])
                weight_norms = torch.stack(torch._foreach_norm(weights))
                move_norms = torch.stack(torch._foreach_norm(moves))
                factors = torch.where((weight_norms > 0) & (move_norms > 0), weight_norms / move_norms, 1.0)
                torch._foreach_mul_(moves, list(factors.unbind()))
            torch._foreach_add_(params, steps, alpha=-group["lr"])
        return loss

    def _adam(self, group: dict[str, Any], params: list[Tensor]) -> list[Tensor]:
        """Adam's bias-corrected step of every parameter, in new tensors."""
        beta1, beta2 = group["betas"]
        for p in params:
            state = self.state[p]
            if not state:
                state.update(step=0, exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p))
            state["step"] += 1
        gradients = [p.grad for p in params]
        first = [self.state[p]["exp_avg"] for p in params]
        second = [self.state[p]["exp_avg_sq"] for p in params]
        taken = [self.state[p]["step"] for p in params]
        torch._foreach_lerp_(first, gradients, 1 - beta1)
        torch._foreach_mul_(second, beta2)
        torch._foreach_addcmul_(second, gradients, gradients, 1 - beta2)
        below = torch._foreach_sqrt(torch._foreach_div(second, [1 - beta2**count for count in taken]))
        torch._foreach_add_(below, group["eps"])
        steps = torch._foreach_div(first, [1 - beta1**count for count in taken])
        torch._foreach_div_(steps, below)
        return list(steps)
