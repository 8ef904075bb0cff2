"""Learning-rate schedules: plain callables ``(step, total) -> factor`` on the optimiser's own rate.

`step` counts from 0 to ``total - 1``. A schedule that keeps state of its own offers ``state_dict`` and
``load_state_dict``; the trainer stores it with each checkpoint.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


def constant(step: int, total: int) -> float:
    """Factor 1 throughout."""
    return 1.0


@dataclass(frozen=True)
class WarmupCosine:
    """Linear warm-up, then half a cosine down to `floor` (SGDR without restarts; Loshchilov and Hutter 2017, eq. 5).

    Args:
        warmup: steps of warm-up if at least 1, or a share of the training if below 1. The first step is not zero.
        floor: factor at the last step.
    """

    warmup: float = 0.05
    floor: float = 0.0

    def __post_init__(self) -> None:
        if self.warmup < 0:
            raise ValueError(f"warmup must not be negative, got {self.warmup}")

    def __call__(self, step: int, total: int) -> float:
        warmup = self.warmup if self.warmup >= 1 else self.warmup * total
        if step + 1 < warmup:
            return (step + 1) / warmup
        progress = (step - max(warmup - 1, 0)) / max(total - max(warmup, 1), 1)
        return self.floor + (1 - self.floor) * (1 + math.cos(math.pi * min(progress, 1.0))) / 2


@dataclass(frozen=True)
class WarmupLinear:
    """Linear warm-up, then a straight line down to `floor`. The arguments are `WarmupCosine`'s."""

    warmup: float = 0.05
    floor: float = 0.0

    def __post_init__(self) -> None:
        if self.warmup < 0:
            raise ValueError(f"warmup must not be negative, got {self.warmup}")

    def __call__(self, step: int, total: int) -> float:
        warmup = self.warmup if self.warmup >= 1 else self.warmup * total
        if step + 1 < warmup:
            return (step + 1) / warmup
        progress = (step - max(warmup - 1, 0)) / max(total - max(warmup, 1), 1)
        return 1 - (1 - self.floor) * min(progress, 1.0)


@dataclass(frozen=True)
class OneCycle:
    """One cycle: cosine rise from ``1 / start`` to 1, then cosine fall to ``1 / end`` (Smith and Topin 2018).

    Args:
        rise: share of the training that rises.
        start: the first rate is the optimiser's divided by this.
        end: the last rate is the optimiser's divided by this.
    """

    rise: float = 0.3
    start: float = 25.0
    end: float = 25e4

    def __post_init__(self) -> None:
        if not 0 < self.rise < 1:
            raise ValueError(f"rise must lie strictly between 0 and 1, got {self.rise}")

    def __call__(self, step: int, total: int) -> float:
        peak = self.rise * total - 1
        if step <= peak:
            return _cosine(1 / self.start, 1.0, step / peak if peak else 1.0)
        return _cosine(1.0, 1 / self.end, (step - peak) / (total - 1 - peak))


@dataclass(frozen=True)
class StepHalving:
    """Halve the rate every `every` steps (or share of the training, if below 1).

    Args:
        every: steps if at least 1, share of the training if below 1.
        factor: what the rate is multiplied with each time.
    """

    every: float = 0.25
    factor: float = 0.5

    def __post_init__(self) -> None:
        if self.every <= 0:
            raise ValueError(f"every must be positive, got {self.every}")

    def __call__(self, step: int, total: int) -> float:
        period = self.every if self.every >= 1 else max(self.every * total, 1)
        return self.factor ** math.floor(step / period + 1e-9)


def _cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2
