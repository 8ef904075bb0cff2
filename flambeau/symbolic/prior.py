"""Prior beliefs about single decisions, which random search and every other algorithm can start from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from flambeau.symbolic.errors import SymbolicError

if TYPE_CHECKING:
    from flambeau.symbolic.spec import Choices, Float


class DesignPrior:
    """An independent distribution for each decision.

    Args:
        weights: name (or path) of a decision -> non-negative weights: one per candidate of a choice; for a float, of
            bins that divide its range equally on its scale. They need not sum to 1. Other decisions are uniform.

    Raises:
        SymbolicError: a weight that is negative or not finite, or none above 0.
    """

    def __init__(self, weights: Mapping[str, Sequence[float]]):
        self.weights = {name: [float(w) for w in values] for name, values in weights.items()}
        for name, values in self.weights.items():
            if not values or not all(math.isfinite(w) and w >= 0 for w in values) or not sum(values) > 0:
                raise SymbolicError(f"{name}: expected finite weights >= 0, not all 0, got {values}")

    def of_choice(self, point: Choices) -> list[float] | None:
        """The weights of a choice's candidates, or None for uniform."""
        weights = self._find(point)
        if weights is not None and len(weights) != point.n:
            raise SymbolicError(f"{point.id}: the prior has {len(weights)} weights for {point.n} candidates")
        if weights is not None and point.k > 1 and point.distinct and sum(w > 0 for w in weights) < point.k:
            raise SymbolicError(f"{point.id}: the prior leaves fewer than {point.k} candidates to choose from")
        return weights

    def of_float(self, point: Float) -> list[float] | None:
        """The weights of a float's bins, or None for uniform."""
        return self._find(point)

    def _find(self, point: Choices | Float) -> list[float] | None:
        weights = self.weights.get(point.name) if point.name else None
        return weights if weights is not None else self.weights.get(point.id)


def log_prob_of_picks(picks: Sequence[int], weights: Sequence[float], distinct: bool, ordered: bool) -> float:
    """Log probability of drawing `picks` one after another in proportion to `weights`.

    Args:
        distinct: drawn without replacement.
        ordered: sorted afterwards, so that all orders of drawing count.
    """
    total = sum(weights)
    if not distinct:
        logs = sum(_log(weights[i] / total) for i in picks)
        if ordered:  # multinomial coefficient
            logs += math.lgamma(len(picks) + 1) - sum(math.lgamma(list(picks).count(i) + 1) for i in set(picks))
        return logs
    if not ordered:
        logs, left = 0.0, total
        for i in picks:
            logs += _log(weights[i] / left) if left > 0 else -math.inf
            left -= weights[i]
        return logs
    if len(set(weights)) == 1:
        return -math.log(math.comb(len(weights), len(picks)))
    if len(picks) > 16:
        raise SymbolicError(f"the probability of {len(picks)} sorted distinct unequal choices is too long a sum")
    # probability[s]: the picks in the bit set s were drawn first, in whatever order
    probability = [1.0] + [0.0] * ((1 << len(picks)) - 1)
    drawn = [0.0] * (1 << len(picks))
    for subset in range(1, 1 << len(picks)):
        for bit, i in enumerate(picks):
            if subset >> bit & 1:
                before = subset & ~(1 << bit)
                drawn[subset] = drawn[before] + weights[i]
                if total > drawn[before]:
                    probability[subset] += probability[before] * weights[i] / (total - drawn[before])
    return _log(probability[-1])


def _log(probability: float) -> float:
    return math.log(probability) if probability > 0 else -math.inf
