"""What the training loop asks of the processes it runs in. One process answers trivially; a plan answers for many."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

T = TypeVar("T")


class Processes(Protocol):
    """See :class:`flambeau.training.parallel.ParallelModel` for many processes. Every process makes every call."""

    first: bool  # whether this process writes files and shows progress
    number: int  # of the processes that read the same data as this one, counted from 0

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any: ...
    def local(self, batch: Any) -> Any: ...
    def reduce_gradients(self) -> None: ...
    def clip_grad_norm(self, max_norm: float) -> Tensor: ...
    def mean(self, values: Mapping[str, Any]) -> dict[str, float]: ...
    def any(self, *flags: bool) -> list[bool]: ...
    def from_first(self, function: Callable[[], T]) -> T: ...
    def whole(self, state: dict[str, Any]) -> dict[str, Any]: ...
    def parts(self, state: dict[str, Any]) -> dict[str, Any]: ...
    def own_rng(self, state: dict[str, Any]) -> dict[str, Any] | None: ...
    def agree_on_overflow(self, scaler: torch.amp.GradScaler, optimizer: torch.optim.Optimizer) -> None: ...


class OneProcess:
    """The usual case."""

    first = True
    number = 0

    def __init__(self, model: nn.Module):
        self.model = model

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(*arguments)

    def local(self, batch: Any) -> Any:
        return batch

    def reduce_gradients(self) -> None:
        pass

    def clip_grad_norm(self, max_norm: float) -> Tensor:
        return nn.utils.clip_grad_norm_(self.model.parameters(), max_norm)

    def mean(self, values: Mapping[str, Any]) -> dict[str, float]:
        return {name: float(value) for name, value in values.items()}

    def any(self, *flags: bool) -> list[bool]:
        return list(flags)

    def from_first(self, function: Callable[[], T]) -> T:
        return function()

    def whole(self, state: dict[str, Any]) -> dict[str, Any]:
        return state

    def parts(self, state: dict[str, Any]) -> dict[str, Any]:
        return state

    def own_rng(self, state: dict[str, Any]) -> dict[str, Any] | None:
        return state["rng"]

    def agree_on_overflow(self, scaler: torch.amp.GradScaler, optimizer: torch.optim.Optimizer) -> None:
        pass


def like(live: Any, saved: Any) -> Any:
    """`saved`, laid out as `live` over its processes if `live` is distributed and they have one shape."""
    if not isinstance(live, Tensor) or not isinstance(saved, Tensor) or type(saved) is type(live):
        return saved
    if not hasattr(live, "placements") or hasattr(saved, "placements") or live.shape != saved.shape:
        return saved
    from flambeau.training.parallel.placement import distribute_like  # slow to import

    return distribute_like(live, saved)
