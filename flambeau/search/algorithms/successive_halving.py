"""Successive halving without waiting (Li et al. 2020, "ASHA", algorithm 2)."""

from __future__ import annotations

import random
from typing import Any

from flambeau.search.algorithm import Algorithm, Reward
from flambeau.search.algorithms.evolution import draw
from flambeau.search.algorithms.mutators import with_node
from flambeau.symbolic import DNA, Spec
from flambeau.symbolic.spec import Choices


class SuccessiveHalving(Algorithm):
    """Tries many points at a small budget, and promotes the best `1/eta` of each rung to the next.

    The budget is a decision of the space itself, outside every candidate, whose candidates ascend: for instance
    `Trainer(steps=oneof([50, 150, 450], name="budget"))`.

    Args:
        budget: name (or path) of that decision.
        eta: one of so many is promoted.
        prior: a DesignPrior of the new points.

    Raises:
        ValueError: (in `setup`) no such decision at the top of the space.
    """

    def __init__(self, budget: str = "budget", eta: int = 3, prior: Any = None) -> None:
        if eta < 2:
            raise ValueError(f"eta: expected at least 2, got {eta}")
        self.budget, self.eta, self.prior = budget, eta, prior

    def setup(self, spec: Spec, seed: int) -> None:
        at = [i for i, point in enumerate(spec.points) if self.budget in (point.name, point.id)]
        if len(at) != 1 or not isinstance(spec.points[at[0]], Choices) or spec.points[at[0]].k != 1:  # type: ignore[attr-defined]
            names = [point.name or point.id for point in spec.points]
            raise ValueError(f"budget: expected one choice among the decisions {names}, got {self.budget!r}")
        self.spec, self.seed, self.proposals, self.at = spec, seed, 0, at[0]
        self.rungs: list[dict[DNA, float]] = [{} for _ in range(spec.points[self.at].n)]  # type: ignore[attr-defined]
        self.promoted: list[dict[DNA, None]] = [{} for _ in self.rungs]

    def propose(self) -> DNA:
        rng = random.Random(f"{self.seed}/{self.proposals}")
        self.proposals += 1
        for rung in reversed(range(len(self.rungs) - 1)):
            ranked = sorted(self.rungs[rung], key=self.rungs[rung].__getitem__, reverse=True)
            for dna in ranked[: len(ranked) // self.eta]:
                if dna not in self.promoted[rung]:
                    self.promoted[rung][dna] = None
                    return self._at_rung(dna, rung + 1)
        return self._at_rung(draw(self.spec, rng, self.prior), 0)

    def feedback(self, dna: DNA, reward: Reward) -> None:
        if isinstance(reward, tuple):
            raise TypeError(f"reward: expected one number, got {reward!r}")
        self.rungs[dna.children[self.at].value][self._at_rung(dna, 0)] = reward  # type: ignore[index]

    def state_dict(self) -> dict[str, Any]:
        return {
            "proposals": self.proposals,
            "rungs": [[[dna.to_json(), reward] for dna, reward in rung.items()] for rung in self.rungs],
            "promoted": [[dna.to_json() for dna in rung] for rung in self.promoted],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.proposals = state["proposals"]
        self.rungs = [{DNA.from_json(dna): reward for dna, reward in rung} for rung in state["rungs"]]
        self.promoted = [{DNA.from_json(dna): None for dna in rung} for rung in state["promoted"]]

    def _at_rung(self, dna: DNA, rung: int) -> DNA:
        """The same point at another budget; points are remembered at the smallest."""
        point: Choices = self.spec.points[self.at]  # type: ignore[assignment]
        return with_node(dna, (self.at,), DNA(rung, point.branch(rung).first().children))
