"""Searches over a table of trained cells with and without caches, in simulated time."""

from __future__ import annotations

import hashlib
import math
import random
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from flambeau.data.nas.nasbench import Cell, digits_split
from flambeau.models.vision.cell_network import CellNetwork
from flambeau.search import FunctionalCache
from flambeau.search.algorithm import Algorithm
from flambeau.search.cells import CellReplay
from flambeau.search.functional.key import hash_numbers
from flambeau.search.functional.probe import Probe

CACHES = ("none", "raw", "graph", "functional")


def cell_probe(steps: int = 4, channels: int = 4, seed: int = 0) -> CellProbe:
    """Trains the network of a cell, `channels` wide, on 16 digits a step; 4 more are the validation."""
    (train, labels), (valid, valid_labels), _ = digits_split()
    count = 16 * max(steps, 1)
    examples = (train[:count, None], labels[:count]), (valid[:4, None], valid_labels[:4])
    return CellProbe(Probe(*examples, steps=steps, seed=seed), channels)


class CellProbe:
    """A Probe of cells; processor seconds are added up in `seconds`, candidates in `count`."""

    def __init__(self, probe: Probe, channels: int) -> None:
        self.probe, self.channels = probe, channels
        self.seconds, self.count = 0.0, 0

    def numbers(self, cell: Cell) -> list[float]:
        began = time.process_time()
        found = self.probe.numbers(partial(CellNetwork, cell, channels=self.channels))
        self.seconds, self.count = self.seconds + time.process_time() - began, self.count + 1
        return found


class CellKeys:
    """Keys of cells by what they compute; every labelling is hashed once. `numbers`: the probe's, by pruned cell."""

    def __init__(self, probe: CellProbe) -> None:
        self.probe, self.numbers = probe, dict[Cell, list[float]]()
        self._keys: dict[Cell, int] = {}

    def __call__(self, cell: Cell) -> int:
        if cell not in self._keys:
            self.numbers[cell] = self.probe.numbers(cell)
            self._keys[cell] = hash_numbers(self.numbers[cell])
        return self._keys[cell]

    @property
    def seconds(self) -> float:
        """Mean processor seconds of one hash."""
        return self.probe.seconds / max(self.probe.count, 1)


def unshared_key(cell: Cell) -> str:
    """Equal for cells that compute the same functions, whatever their parameters: the slow and exact oracle.

    A pool has no parameters, so one pool with two consumers is two pools with one each; after giving every consumer
    its own, cells are equal if their graphs are, by a Weisfeiler-Lehman hash.

    Raises:
        ValueError: the output is not connected to the input.
    """
    if cell.pruned is None:
        raise ValueError("cell: the output is not connected to the input")
    labels = ["input", *cell.pruned.operations, "output"]
    edges = {(i, j) for i, row in enumerate(cell.pruned.matrix) for j, bit in enumerate(row) if bit}
    shared = True
    while shared:
        shared = False
        for pool in range(len(labels)):
            users = [edge for edge in edges if edge[0] == pool]
            if labels[pool] == "maxpool3x3" and len(users) > 1:
                shared = True
                edges.remove(users[0])
                edges |= {(i, len(labels)) for i, j in edges if j == pool} | {(len(labels), users[0][1])}
                labels.append("maxpool3x3")
    hashes = list(labels)
    for _ in range(len(labels) + 1):
        parts = [
            (sorted(hashes[i] for i, j in edges if j == v), sorted(hashes[j] for i, j in edges if i == v), hashes[v])
            for v in range(len(labels))
        ]
        hashes = [hashlib.sha256(repr(part).encode()).hexdigest() for part in parts]
    return "".join(sorted(hashes))


class Trajectory(NamedTuple):
    """One search, trial by trial: which row of the table, and whether each cache has not seen it before."""

    rows: np.ndarray
    new: Mapping[str, np.ndarray]
    new_structure: np.ndarray


def replay_search(
    replay: CellReplay, keys: CellKeys, algorithm: Algorithm, trials: int, seconds: float, seed: int
) -> Trajectory:
    """Run a search for `trials`, or until it has trained for `seconds` without a cache.

    Rewards come without noise, so all caches see the same trials. "raw" compares cells as they were proposed, "graph"
    by the hash of NAS-Bench-101, "functional" by what they compute, where equal pruned cells are hashed once.
    """
    algorithm.setup(replay.spec, seed)
    rows, seen, spent = [], {name: [] for name in ("raw", "pruned", "graph", "functional")}, 0.0  # type: ignore[var-annotated]
    while len(rows) < trials and spent < seconds:
        dna = algorithm.propose()
        numbers = tuple(dna.to_numbers())
        row, pruned = replay.row_of(numbers), replay.cell(numbers).pruned
        if row is None or pruned is None:
            raise ValueError(f"algorithm: proposed a cell that is not in the table: {pruned}")
        algorithm.feedback(dna, float(replay.accuracy[row]))
        rows.append(row)
        spent += float(replay.seconds[row])
        for name, key in (("raw", numbers), ("pruned", pruned), ("graph", row), ("functional", keys(pruned))):
            seen[name].append(key)
    new = {name: first_of(found) for name, found in seen.items()}
    new["none"] = np.ones(len(rows), bool)
    return Trajectory(np.array(rows), new, new["pruned"])


def first_of(keys: list) -> np.ndarray:
    """Which of the keys were not there before `[n]`."""
    seen: set = set()
    return np.array([not (key in seen or seen.add(key)) for key in keys])  # type: ignore[func-returns-value]


def simulated(replay: CellReplay, found: Trajectory, hash_seconds: float) -> dict[str, np.ndarray]:
    """Simulated seconds after each trial `[trials]`, for each cache."""
    seconds = replay.seconds[found.rows]
    spent = {name: np.cumsum(seconds * found.new[name]) for name in CACHES}
    spent["functional"] = spent["functional"] + hash_seconds * np.cumsum(found.new_structure)
    return spent


def summary(replay: CellReplay, searches: Mapping[str, list[Trajectory]], hash_seconds: float) -> list[dict]:
    """A row for each search and cache: hits, and the time until the search has its final best, over that without."""
    rows = []
    for search, found in searches.items():
        spent = [simulated(replay, trajectory, hash_seconds) for trajectory in found]
        ends = [int(np.argmax(replay.accuracy[trajectory.rows])) for trajectory in found]
        plain = np.mean([times["none"][end] for times, end in zip(spent, ends)])
        for cache in CACHES:
            until = np.mean([times[cache][end] for times, end in zip(spent, ends)])
            rows.append(
                {
                    "search": search,
                    "cache": cache,
                    "hits %": 100 * np.mean([1 - trajectory.new[cache].mean() for trajectory in found]),
                    "seconds to the best": until,
                    "of no cache": until / plain,
                    "best accuracy %": 100 * np.mean([replay.accuracy[t.rows].max() for t in found]),
                }
            )
    return rows


def replay_figure(replay: CellReplay, searches: Mapping[str, list[Trajectory]], hash_seconds: float) -> Figure:
    """Best validation accuracy against simulated time (mean over searches), a panel a search, a line a cache."""
    figure = Figure(figsize=(4 * len(searches), 3.6))
    for axis, (search, found) in zip(
        figure.subplots(1, len(searches), sharey=True, squeeze=False)[0], searches.items()
    ):
        spent = [simulated(replay, trajectory, hash_seconds) for trajectory in found]
        best = [100 * np.maximum.accumulate(replay.accuracy[trajectory.rows]) for trajectory in found]
        grid = np.linspace(0, np.mean([times["none"][-1] for times in spent]), 200)
        for cache in CACHES:
            curves = [curve[np.searchsorted(t[cache][:-1], grid)] for t, curve in zip(spent, best)]
            axis.plot(grid, np.mean(curves, 0), label={"none": "no cache"}.get(cache, f"{cache} key"))
        axis.set_title(search)
        axis.set_xlabel("simulated seconds")
        axis.set_ylim(bottom=max(0.0, 100 * float(np.median(replay.accuracy))))
    figure.axes[0].set_ylabel("best validation accuracy, %")
    figure.axes[-1].legend(fontsize="small", loc="lower right")
    figure.tight_layout()
    return figure


class NoisyPick(NamedTuple):
    """What a search with noisy evaluations ends with: test accuracy, training seconds, share of trials not trained."""

    test: float
    seconds: float
    hits: float


def noisy_search(
    replay: CellReplay,
    algorithm: Algorithm,
    cache: FunctionalCache | None,
    trials: int,
    sigma: float,
    seed: int,
) -> NoisyPick:
    """A search whose evaluations have normal noise of `sigma`.

    The final pick is the cell of the highest lower bound, mean - sigma / sqrt(evaluations), of what the search knows of
    it at the end; where all values are of one evaluation that is the highest value.
    """
    algorithm.setup(replay.spec, seed)
    noise, known, spent, hits = random.Random(f"noise {seed}"), dict[object, tuple[float, int]](), 0.0, 0

    def train(cell: Cell) -> float:
        return float(replay.accuracy[row]) + noise.gauss(0, sigma)

    for trial in range(trials):
        dna = algorithm.propose()
        numbers = tuple(dna.to_numbers())
        row, cell = replay.row_of(numbers), replay.cell(numbers).pruned
        if row is None or cell is None:
            raise ValueError(f"algorithm: proposed a cell that is not in the table: {cell}")
        if cache is None:
            key, value, n_evals, cached = trial, train(cell), 1, False
        else:
            value, cached, n_evals, key = cache.evaluate(cell, train)  # type: ignore[assignment]
        algorithm.feedback(dna, value)
        known[key] = (value - sigma / math.sqrt(n_evals), row)
        hits += cached
        spent += 0.0 if cached else float(replay.seconds[row])
    _, picked = max(known.values())
    return NoisyPick(float(replay.table.accuracy[picked, 1, -1].mean()), spent, hits / trials)


def noise_study(
    replay: CellReplay,
    keys: Callable[[Cell], int],
    make: Callable[[], Algorithm],
    trials: int,
    seeds: list[int],
    advance: Callable[[], None],
) -> list[dict]:
    """Mean over `seeds` of the final pick, for no cache and caches that average or forget; a row each.

    The noise is the table's own: the mean over cells of the standard deviation over training seeds.
    """
    sigma = float(replay.table.accuracy[:, 0, -1].std(-1, ddof=1).mean())
    ways = [(None, 0.0)] + [(evaluations, remove) for evaluations in (1, 4) for remove in (0.0, 0.05)]
    rows = []
    for evaluations, remove in ways:
        picks = []
        for seed in seeds:
            options = dict(max_evals=evaluations, remove_prob=remove, structural=lambda cell: cell, seed=seed)
            cache = FunctionalCache(keys, **options) if evaluations else None  # type: ignore[arg-type]
            picks.append(noisy_search(replay, make(), cache, trials, sigma, seed))
            advance()
        tests = 100 * np.array([pick.test for pick in picks])
        rows.append(
            {
                "evaluations averaged": evaluations or "no cache",
                "remove_prob": remove,
                "test accuracy %": tests.mean(),
                "standard error": tests.std() / len(tests) ** 0.5,
                "training seconds": np.mean([pick.seconds for pick in picks]),
                "hits %": 100 * np.mean([pick.hits for pick in picks]),
            }
        )
    return rows
