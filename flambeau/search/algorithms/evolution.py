"""Evolution as a composition of operations, and its two best known instances."""

from __future__ import annotations

import random
from typing import Any

from flambeau.search.algorithm import Algorithm, Reward
from flambeau.search.algorithms.mutators import Uniform
from flambeau.search.algorithms.operations import Context, Individual, Individuals, Operation
from flambeau.search.algorithms.selectors import Last, Sample, Top
from flambeau.symbolic import DNA, Spec


class Evolution(Algorithm):
    """Proposes what `reproduction` makes of the population of rewarded individuals.

    Proposals are random until `population_init` rewards have arrived. Each reward then adds an individual at the end
    of the population, and `population_update` (by default nothing) reshapes it.

    Args:
        reproduction: from the population to one or more children, which are proposed one after the other.
        prior: a DesignPrior of the random draws, in the initial population and in mutations.

    Proposal i draws from a generator seeded by (seed, i), so that a state is small.
    """

    def __init__(
        self,
        reproduction: Operation,
        *,
        population_init: int,
        population_update: Operation | None = None,
        multi_objective: bool = False,
        prior: Any = None,
    ) -> None:
        if population_init < 1:
            raise ValueError(f"population_init: expected at least 1, got {population_init}")
        self.reproduction, self.population_init, self.population_update = (
            reproduction,
            population_init,
            population_update,
        )
        self.multi_objective, self.prior = multi_objective, prior

    def setup(self, spec: Spec, seed: int) -> None:
        self.spec, self.seed = spec, seed
        self.proposals, self.rewards = 0, 0
        self.population: Individuals = []
        self.children: list[DNA] = []

    def propose(self) -> DNA:
        context = self._context("propose", self.proposals)
        self.proposals += 1
        if self.rewards < self.population_init:
            return draw(self.spec, context.rng, self.prior)
        if not self.children:
            self.children = [child.dna for child in self.reproduction(self.population, context)]
            if not self.children:
                raise ValueError("reproduction: it returned no children")
        return self.children.pop(0)

    def feedback(self, dna: DNA, reward: Reward) -> None:
        if isinstance(reward, tuple) != self.multi_objective:
            expected = "a tuple of numbers" if self.multi_objective else "one number"
            raise TypeError(f"reward: expected {expected}, got {reward!r}")
        self.population = [*self.population, Individual(dna, reward)]
        if self.population_update is not None:
            self.population = self.population_update(self.population, self._context("update", self.rewards))
        self.rewards += 1

    def state_dict(self) -> dict[str, Any]:
        return {
            "proposals": self.proposals,
            "rewards": self.rewards,
            "population": [[individual.dna.to_json(), individual.reward] for individual in self.population],
            "children": [dna.to_json() for dna in self.children],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.proposals, self.rewards = state["proposals"], state["rewards"]
        self.population = [
            Individual(DNA.from_json(dna), tuple(reward) if self.multi_objective else reward)
            for dna, reward in state["population"]
        ]
        self.children = [DNA.from_json(dna) for dna in state["children"]]

    def _context(self, purpose: str, count: int) -> Context:
        return Context(self.spec, random.Random(f"{self.seed}/{purpose}/{count}"), count, self.prior)


def draw(spec: Spec, rng: random.Random, prior: Any) -> DNA:
    """A random point, from `prior` if there is one."""
    return spec.random(rng) if prior is None else spec.random(rng, prior)


class RegularizedEvolution(Evolution):
    """Regularised (ageing) evolution (Real et al. 2019, algorithm 1): tournament, one mutation, the oldest dies."""

    def __init__(
        self, population: int = 100, tournament: int = 10, mutator: Operation | None = None, prior: Any = None
    ) -> None:
        if not 1 <= tournament <= population:
            raise ValueError(f"tournament: expected 1..{population} (the population), got {tournament}")
        super().__init__(
            Sample(tournament) >> Top(1) >> (mutator or Uniform()),
            population_init=population,
            population_update=Last(population),
            prior=prior,
        )


class HillClimb(Evolution):
    """Mutates the best point so far, which only a better one replaces."""

    def __init__(self, mutator: Operation | None = None, prior: Any = None) -> None:
        super().__init__(mutator or Uniform(), population_init=1, population_update=Top(1), prior=prior)
