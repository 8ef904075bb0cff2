"""Selectors: operations that choose among individuals."""

from __future__ import annotations

from flambeau.search.algorithms.operations import Context, Individuals, Operation


class _Selector(Operation):
    def __init__(self, n: int) -> None:
        if n < 1:
            raise ValueError(f"n: expected at least 1, got {n}")
        self.n = n


class Sample(_Selector):
    """`n` individuals drawn without replacement, in their old order; all if there are fewer."""

    def __call__(self, individuals: Individuals, context: Context) -> Individuals:
        drawn = context.rng.sample(range(len(individuals)), min(self.n, len(individuals)))
        return [individuals[i] for i in sorted(drawn)]


class Top(_Selector):
    """The `n` of highest reward, best first; of equals the earlier one."""

    def __call__(self, individuals: Individuals, context: Context) -> Individuals:
        return sorted(individuals, key=lambda individual: individual.reward, reverse=True)[: self.n]  # type: ignore[arg-type, return-value]


class First(_Selector):
    """The first `n`: the oldest of a population."""

    def __call__(self, individuals: Individuals, context: Context) -> Individuals:
        return individuals[: self.n]


class Last(_Selector):
    """The last `n`: the youngest of a population."""

    def __call__(self, individuals: Individuals, context: Context) -> Individuals:
        return individuals[-self.n :]
