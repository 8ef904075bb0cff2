"""Layer-wise adaptive rate scaling."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class LARS(torch.optim.Optimizer):
    """SGD with momentum whose step is as long as the layer's weights allow (You et al. 2017, arXiv 1708.03888).

    ``d = trust |w| / (|g| + weight_decay |w|) * (g + weight_decay w)``, then ``v <- momentum v + d`` and
    ``w <- w - lr v``. A layer without weights or without gradient has factor 1.

    trust: how far of its own length a layer may go in a step of lr 1. exclude_1d: biases and norms (parameters of one
    axis or none) are trained by SGD without weight decay, as is usual in self-supervised training.

    Raises:
        ValueError: a value out of range.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.15,
        momentum: float = 0.9,
        weight_decay: float = 1e-6,
        trust: float = 0.001,
        exclude_1d: bool = True,
    ):
        for name, value in (("lr", lr), ("weight_decay", weight_decay), ("trust", trust)):
            if not value >= 0:
                raise ValueError(f"{name} must not be negative, got {value}")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must lie in [0, 1), got {momentum}")
        defaults = dict(lr=lr, momentum=momentum, weight_decay=weight_decay, trust=trust, exclude_1d=exclude_1d)
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            adapted = [p for p in params if p.ndim > 1 or not group["exclude_1d"]]
            plain = [p for p in params if p.ndim <= 1 and group["exclude_1d"]]
            if adapted:
                self._move(group, adapted, self._scaled(group, adapted))
            if plain:
                self._move(group, plain, [p.grad for p in plain])
        return loss

    def _scaled(self, group: dict[str, Any], params: list[Tensor]) -> list[Tensor]:
        gradients = [p.grad for p in params]
        weight_norms = torch.stack(torch._foreach_norm(params))
        gradient_norms = torch.stack(torch._foreach_norm(gradients))
        factors = group["trust"] * weight_norms / (gradient_norms + group["weight_decay"] * weight_norms)
        factors = torch.where((weight_norms > 0) & (gradient_norms > 0), factors, torch.ones_like(factors))
        decayed = torch._foreach_add(gradients, params, alpha=group["weight_decay"])
        return torch._foreach_mul(decayed, list(factors.unbind()))

    def _move(self, group: dict[str, Any], params: list[Tensor], steps: list[Tensor]) -> None:
        for p in params:
            if "momentum_buffer" not in self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        velocities = [self.state[p]["momentum_buffer"] for p in params]
        torch._foreach_mul_(velocities, group["momentum"])
        torch._foreach_add_(velocities, steps)
        torch._foreach_add_(params, velocities, alpha=-group["lr"])
