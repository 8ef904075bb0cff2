"""REINFORCE with one independent distribution a decision (Williams 1992; as in Bender et al. 2020, "TuNAS")."""

from __future__ import annotations

import math
import random
from typing import Any

from flambeau.search.algorithm import Algorithm, Reward
from flambeau.symbolic import DNA, Spec
from flambeau.symbolic.spec import Choices, Decision, Float, Point

BINS = 10  # a float is decided as one of so many equal parts of its range, then uniformly inside


class Baseline:
    """Moving mean and spread of the rewards, to make advantages comparable."""

    def __init__(self, momentum: float = 0.9) -> None:
        self.momentum, self.mean, self.square, self.count = momentum, 0.0, 0.0, 0

    def advantage(self, reward: float) -> float:
        """How many standard deviations `reward` is above what came before it; then takes it into account."""
        keep = min(self.momentum, self.count / (self.count + 1))
        deviation = math.sqrt(max(self.square - self.mean**2, 0.0))
        difference = (reward - self.mean) if self.count else 0.0
        self.mean = keep * self.mean + (1 - keep) * reward
        self.square = keep * self.square + (1 - keep) * reward**2
        self.count += 1
        return max(-3.0, min(3.0, difference / deviation)) if deviation > 1e-12 else 0.0


class Reinforce(Algorithm):
    """Draws every decision from its own softmax and moves its logits along `advantage * grad log p`.

    Args:
        rate: step size of the logits.
        entropy: weight of an entropy bonus, which keeps the distributions from collapsing.
        prior: a DesignPrior; the logits start at its logarithms.
    """

    def __init__(self, rate: float = 0.15, entropy: float = 0.0, prior: Any = None) -> None:
        if rate <= 0:
            raise ValueError(f"rate: expected a number > 0, got {rate}")
        self.rate, self.entropy, self.prior = rate, entropy, prior

    def setup(self, spec: Spec, seed: int) -> None:
        self.spec, self.seed, self.proposals = spec, seed, 0
        self.logits: dict[str, list[float]] = {}
        self.baseline = Baseline()

    def propose(self) -> DNA:
        rng = random.Random(f"{self.seed}/{self.proposals}")
        self.proposals += 1
        return grow(self.spec, rng, lambda decision: self._probabilities(decision))

    def feedback(self, dna: DNA, reward: Reward) -> None:
        if isinstance(reward, tuple):
            raise TypeError(f"reward: expected one number, got {reward!r}")
        advantage = self.baseline.advantage(reward)
        for decision, value in self.spec.decisions(dna):
            if not isinstance(decision.point, (Choices, Float)):
                continue
            chosen, probabilities = option_of(decision.point, value), self._probabilities(decision)
            logits = self.logits[decision.id]
            uncertainty = -sum(p * math.log(p) for p in probabilities.values() if p > 0)
            for option, p in probabilities.items():
                gradient = advantage * ((option == chosen) - p)
                if self.entropy and p > 0:
                    gradient -= self.entropy * p * (math.log(p) + uncertainty)
                logits[option] += self.rate * gradient

    def state_dict(self) -> dict[str, Any]:
        moments = [self.baseline.mean, self.baseline.square, self.baseline.count]
        logits = {id: list(values) for id, values in self.logits.items()}
        return {"proposals": self.proposals, "logits": logits, "baseline": moments}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.proposals = state["proposals"]
        self.logits = {id: list(logits) for id, logits in state["logits"].items()}
        self.baseline.mean, self.baseline.square, self.baseline.count = state["baseline"]

    def _probabilities(self, decision: Decision) -> dict[int, float]:
        if decision.id not in self.logits:
            self.logits[decision.id] = initial_logits(decision.point, self.prior)
        return softmax({option: self.logits[decision.id][option] for option in options_of(decision)})


def options_of(decision: Decision) -> range | list[int]:
    """The options of a decision: its candidates, or the bins of a float."""
    return range(BINS) if decision.options is None else list(decision.options)


def option_of(point: Point, value: Any) -> int:
    """The option that a decided value belongs to."""
    return min(int(point.to_unit(value) * BINS), BINS - 1) if isinstance(point, Float) else value


def grow(spec: Spec, rng: random.Random, probabilities: Any) -> DNA:
    """A point drawn decision by decision; `probabilities(decision)` maps options to probabilities."""
    walk = spec.grow()
    try:
        decision = next(walk)
        while True:
            if not isinstance(decision.point, (Choices, Float)):
                value: Any = decision.point.random(rng).value
            else:
                weights = probabilities(decision)
                value = rng.choices(list(weights), list(weights.values()))[0]
                if isinstance(decision.point, Float):
                    value = decision.point.from_unit((value + rng.random()) / BINS)
            decision = walk.send(value)
    except StopIteration as end:
        return end.value


def initial_logits(point: Point, prior: Any) -> list[float]:
    """Log prior weights; zeros without a prior."""
    if isinstance(point, Float):
        weights = None if prior is None else prior.of_float(point)
        if weights is not None:
            # The prior's bins, read at the middle of ours.
            weights = [weights[int((i + 0.5) / BINS * len(weights))] for i in range(BINS)]
        n = BINS
    else:
        weights = None if prior is None else prior.of_choice(point)
        n = point.n  # type: ignore[attr-defined]
    return [0.0] * n if weights is None else [math.log(max(w, 1e-12)) for w in weights]


def softmax(logits: dict[int, float]) -> dict[int, float]:
    """Probabilities of logits."""
    highest = max(logits.values())
    exponentials = {option: math.exp(logit - highest) for option, logit in logits.items()}
    total = sum(exponentials.values())
    return {option: value / total for option, value in exponentials.items()}
