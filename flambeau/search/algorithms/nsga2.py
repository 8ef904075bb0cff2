"""NSGA-II: multi-objective evolution by non-dominated sorting and crowding (Deb et al. 2002), maximising."""

from __future__ import annotations

import numpy as np

from flambeau.search.algorithms.evolution import Evolution
from flambeau.search.algorithms.mutators import Uniform
from flambeau.search.algorithms.operations import Context, Individuals, Operation
from flambeau.search.algorithms.selectors import First, Sample


def fronts(rewards: np.ndarray) -> list[np.ndarray]:
    """Indices of the successive non-dominated fronts of `rewards` `[points, objectives]`, each ascending.

    A point dominates another if it is at least as good in every objective and better in one.
    """
    if rewards.ndim != 2:
        raise ValueError(f"rewards: expected shape [points, objectives], got {rewards.shape}")
    at_least = np.all(rewards[:, None] >= rewards[None], axis=-1)
    dominates = at_least & np.any(rewards[:, None] > rewards[None], axis=-1)
    left, found = np.arange(len(rewards)), []
    while len(left):
        dominated = dominates[np.ix_(left, left)].any(0)
        found.append(left[~dominated])
        left = left[dominated]
    return found


def crowding(rewards: np.ndarray) -> np.ndarray:
    """Crowding distance of each point of one front `[points, objectives]`: infinite at the ends (section III-B)."""
    distance = np.zeros(len(rewards))
    for values in rewards.T:
        order = np.argsort(values, kind="stable")
        spread = values[order[-1]] - values[order[0]]
        if spread > 0:
            distance[order[1:-1]] += (values[order[2:]] - values[order[:-2]]) / spread
        distance[order[[0, -1]]] = np.inf
    return distance


class NondominatedSort(Operation):
    """Orders individuals by front, within a front by crowding distance, the lonely ones first."""

    def __call__(self, individuals: Individuals, context: Context) -> Individuals:
        rewards = np.array([individual.reward for individual in individuals], float)
        order = [i for front in fronts(rewards) for i in front[np.argsort(-crowding(rewards[front]), kind="stable")]]
        return [individuals[i] for i in order]


class NSGA2(Evolution):
    """NSGA-II: binary tournaments among `population` parents; parents and as many children make the next parents.

    Rewards are tuples, one number an objective.
    """

    def __init__(self, population: int = 100, mutator: Operation | None = None, prior=None) -> None:
        # Sorted parents stand in crowded-comparison order, so the first of two drawn wins the tournament.
        super().__init__(
            First(population) >> Sample(2) >> First(1) >> (mutator or Uniform()),
            population_init=population,
            population_update=(NondominatedSort() >> First(population)).when(lambda all: len(all) % population == 0),
            multi_objective=True,
            prior=prior,
        )
