"""Searches over NAS-Bench cells by looking results up instead of training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from flambeau.data.nas.nasbench import OPERATIONS, Cell, NasBench, cell_space
from flambeau.search.algorithm import Algorithm, Feasible, Random
from flambeau.search.algorithms import (
    MCTS,
    Context,
    Evolution,
    HillClimb,
    Individual,
    Last,
    Operation,
    RegularizedEvolution,
    Reinforce,
    Sample,
    Top,
    Uniform,
)
from flambeau.search.algorithms.operations import Individuals
from flambeau.search.flows import Trial, factorized, joint, separate
from flambeau.symbolic import DNA, template


class CellReplay:
    """The space of labelled cells of a table, and its rewards: mean validation accuracy, 0 for what is not in it.

    Attributes:
        vertices: of every cell, before pruning.
        spec: decisions `edge_i_j` and `operation_i`.
        connected: the point with all edges but the first (of `vertices` vertices), operations the first.
    """

    def __init__(self, table: NasBench) -> None:
        self.vertices = vertices = int(table.vertices.max())
        self.template = template(cell_space(vertices))
        self.spec = self.template.spec
        edges = vertices * (vertices - 1) // 2
        self.connected = self.spec.from_numbers([0] + [1] * (edges - 1) + [0] * (vertices - 2))
        self.table = table
        self.accuracy = table.validation()
        self.seconds = table.seconds[:, -1].mean(-1)
        # Rank of each cell, 1 the best, in percent of all; ties share the best rank.
        ordered = np.sort(self.accuracy)
        self.rank = 100 * (len(ordered) - np.searchsorted(ordered, self.accuracy, side="right") + 1) / len(ordered)
        self._rows: dict[tuple, int | None] = {}

    def row(self, dna: DNA) -> int | None:
        """The row of the table for a point; None if it is no cell of it."""
        return self.row_of(tuple(dna.to_numbers()))

    def row_of(self, numbers: tuple[Any, ...]) -> int | None:
        """The same for a point that is written as numbers."""
        if numbers not in self._rows:
            cell = self.cell(numbers)
            self._rows[numbers] = self.table.row.get(cell.key) if cell.pruned is not None else None
        return self._rows[numbers]

    def cell(self, numbers: Sequence[Any]) -> Cell:
        """The cell of a point that is written as numbers: the edges row by row, then the operations."""
        edges = len(numbers) - (self.vertices - 2)
        return Cell.from_edges([int(bit) for bit in numbers[:edges]], [OPERATIONS[int(i)] for i in numbers[edges:]])

    def __call__(self, dna: DNA) -> float:
        row = self.row(dna)
        return 0.0 if row is None else float(self.accuracy[row])

    def ranks(self, trials: Sequence[Trial], seconds: float | None = None) -> np.ndarray:
        """Rank in percent of the best cell after each trial `[trials]`; 100 before the first cell.

        `seconds`: what comes after so many simulated seconds of training does not count.
        """
        best, spent, found = 100.0, 0.0, []
        for trial in trials:
            row = self.row(trial.dna)
            spent += 0.0 if row is None else float(self.seconds[row])
            if row is not None and (seconds is None or spent <= seconds):
                best = min(best, float(self.rank[row]))
            found.append(best)
        return np.array(found)


def cell_searches(
    replay: CellReplay, trials: int, population: int, tournament: int
) -> dict[str, Callable[[int], list[Trial]]]:
    """Ways to search the cells, each a function of the seed that returns its trials.

    "evolution" redraws a mutation until it changes something; "evolution, redrawing" may draw the old value again, as
    PyGlove's uniform mutator does. The last two are its search flows: operations, then edges; edges
    within operations.
    """

    def evolution() -> RegularizedEvolution:
        return RegularizedEvolution(population, tournament, Uniform().until_changed())

    def alone(make: Callable[[], Algorithm]) -> Callable[[int], list[Trial]]:
        return lambda seed: joint(replay.spec, make(), replay, trials, seed)

    stages = [(is_operation, evolution()), (lambda point: not is_operation(point), evolution())]
    inner, outer = (lambda: RegularizedEvolution(10, 5)), RegularizedEvolution(5, 2)
    return {
        "random": alone(Random),
        "evolution": alone(evolution),
        "evolution, redrawing": alone(lambda: RegularizedEvolution(population, tournament)),
        "hill climbing": alone(HillClimb),
        "MCTS": alone(MCTS),
        "REINFORCE": alone(Reinforce),
        "evolution, operations then edges": lambda seed: separate(
            replay.spec, stages, replay, trials, start=replay.connected, seed=seed
        ),
        "evolution, edges in operations": lambda seed: factorized(
            replay.spec, is_operation, outer, inner, replay, trials, 20, seed
        ),
    }


class CellMutation(Operation):
    """NAS-Bench-101's mutation (Ying et al. 2019): of a cell of V vertices every edge flips with probability 1/V, every
    operation changes to another one with probability 1/(V - 2), and all that again until the cell is in the table."""

    def __init__(self, replay: CellReplay) -> None:
        self.replay = replay

    def __call__(self, individuals: Individuals, context: Context) -> Individuals:
        return [Individual(self.mutate(individual.dna, context)) for individual in individuals]

    def mutate(self, dna: DNA, context: Context) -> DNA:
        numbers, rng, vertices = dna.to_numbers(), context.rng, self.replay.vertices
        edges = len(numbers) - (vertices - 2)
        while True:
            changed: list[Any] = list(numbers)
            for i in range(len(numbers)):
                if i < edges and rng.random() < 1 / vertices:
                    changed[i] = 1 - changed[i]
                elif i >= edges and rng.random() < 1 / (vertices - 2):
                    changed[i] = rng.choice([j for j in range(len(OPERATIONS)) if j != changed[i]])
            if self.replay.row_of(tuple(changed)) is not None:
                return context.spec.from_numbers(changed)


def cached_searches(replay: CellReplay, population: int, tournament: int) -> dict[str, Callable[[], Algorithm]]:
    """The searches that functional hashing was studied with, over cells of the table only: random, regularised
    evolution (the oldest dies) and elitism (the worst dies)."""

    def evolution(keep: Operation) -> Algorithm:
        reproduction = Sample(tournament) >> Top(1) >> CellMutation(replay)
        return Feasible(
            Evolution(reproduction, population_init=population, population_update=keep),
            lambda dna: replay.row(dna) is not None,
        )

    return {
        "evolution": lambda: evolution(Last(population)),
        "elitism": lambda: evolution(Top(population)),
        "random": lambda: Feasible(Random(), lambda dna: replay.row(dna) is not None),
    }


def is_operation(point: Any) -> bool:
    """Whether a decision point of the cell space chooses an operation, not an edge."""
    return point.name.startswith("operation")


def optuna_tpe(replay: CellReplay, n: int, seeds: Iterable[int]) -> list[list[Trial]]:
    """The trials of Optuna's TPE sampler for each seed; none if optuna is not installed."""
    try:
        import optuna
    except ImportError:
        return []
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    searches = []
    for seed in seeds:
        trials: list[Trial] = []

        def objective(trial, trials: list[Trial] = trials) -> float:
            options = {str(point.name): list(range(point.n)) for point in replay.spec.points}  # type: ignore[attr-defined]
            dna = replay.spec.from_dict({name: trial.suggest_categorical(name, o) for name, o in options.items()})
            trials.append(Trial(dna, replay(dna)))
            return trials[-1].reward

        study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed))
        study.optimize(objective, n_trials=n)
        searches.append(trials)
    return searches
