"""Functional hashing: candidates that compute the same are found by running them briefly, and evaluated once."""

import math
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from flambeau.data.nas.nasbench import DigitsNasBench
from flambeau.data.nas.nasbench101 import load_nasbench101
from flambeau.experiment import Claim, experiment
from flambeau.experiment.search.cache_replay import (
    CellKeys,
    Trajectory,
    cell_probe,
    noise_study,
    replay_figure,
    replay_search,
    summary,
    unshared_key,
)
from flambeau.experiment.search.program_search import compare_programs, loss_rows, search_losses
from flambeau.search.cells import CellReplay, cached_searches
from flambeau.search.functional.collision_study import collision_study, collisions

# fmt: off
CLAIMS = [
    Claim("hits_evolution", "trials of regularised evolution that need no training", unit="%", at_least=40),
    Claim("hits_random", "trials of random search that need no training", unit="%", at_least=60),
    Claim("time_evolution", "evolution's simulated time to its best, over that with no cache", unit="x", at_most=0.6),
    Claim("time_random", "random search's simulated time to its best, over that with no cache", unit="x", at_most=0.6),
    Claim("hits_graph", "hits by the functional key beyond those by a graph hash", unit="points", at_least=0.0),
    Claim("splits", "cells of equal function that get different keys", unit="%", at_most=0.0),
    Claim("merges", "cells of different function that get equal keys", unit="%"),
    Claim("noise", "test accuracy if 4 noisy evaluations are averaged, over that of 1", unit="points", at_least=0.0),
    Claim("programs_speed", "register programs a second with a functional cache, over those without one",
          paper="about 4x (not verified)", unit="x", at_least=2.0),
    Claim("programs_hits", "register programs that need no evaluation", unit="%", at_least=30),
    Claim("losses_hits", "loss functions of a search that need no training", unit="%"),
]
PRESETS: dict[str, dict[str, Any]] = {
    "smoke": {"trials": 40, "repeats": 2, "noise_trials": 40, "noise_repeats": 2, "population": 10, "tournament": 3,
              "collision_cells": 10, "programs": 40, "program_population": 20, "losses": 12},
    "paper": {"domain": "cells", "data": "nasbench_full.tfrecord", "trials": 100_000, "budget": 5e6,
              "hash_seconds": 10.0, "noise_repeats": 0},
}
# fmt: on
DOMAINS = {
    "cells": [claim.name for claim in CLAIMS if not claim.name.startswith(("programs", "losses"))],
    "programs": ["programs_speed", "programs_hits"],
    "losses": ["losses_hits"],
}


@experiment("functional_hashing", claims=CLAIMS, presets=PRESETS)
def run(
    run: Any,
    *,
    domain: str = "all",
    data: str | None = None,
    trials: int = 500,
    budget: float | None = None,
    repeats: int = 100,
    population: int = 50,
    tournament: int = 10,
    hash_seconds: float | None = None,
    collision_cells: int = 300,
    noise_trials: int = 500,
    noise_repeats: int = 100,
    programs: int = 6000,
    program_population: int = 1000,
    losses: int = 150,
) -> None:
    """Search cells, register programs and losses with a cache of what they compute.

    Args:
        domain: cells, programs, losses, or all of them.
        data: a NAS-Bench-101 `.tfrecord` file; by default the shipped table of cells trained on digits.
        trials: most trials of a search over cells.
        budget: most simulated seconds of a search over cells, without a cache.
        repeats: searches over cells with each algorithm.
        population: cells that evolve.
        tournament: cells, or programs, of which the best is mutated.
        hash_seconds: simulated cost of hashing a cell; None: as measured.
        collision_cells: cells on which the errors of other hashes are counted.
        noise_trials: trials of a search with noisy evaluations.
        noise_repeats: such searches with each kind of cache; 0 for none.
        programs: register programs evaluated.
        program_population: programs that evolve.
        losses: trials of the search over losses.
    """
    if domain not in ("all", *DOMAINS):
        raise ValueError(f"domain: expected all or one of {', '.join(DOMAINS)}, got {domain!r}")
    for name, claims in DOMAINS.items():
        if domain not in ("all", name):
            for claim in claims:
                run.unmeasured(claim, f"domain={domain}")
    if domain in ("all", "cells"):
        replay = CellReplay(DigitsNasBench() if data is None else load_nasbench101(data))
        keys = CellKeys(cell_probe())
        search_cells(run, replay, keys, trials, budget or math.inf, repeats, population, tournament, hash_seconds)
        study_collisions(run, keys, collision_cells)
        study_noise(run, replay, keys, noise_trials, noise_repeats, population, tournament)
    if domain in ("all", "programs"):
        search_programs(run, programs, program_population, tournament)
    if domain in ("all", "losses"):
        study, counts, trained = search_losses(losses, run.seed, run.progress)
        run.table("losses", loss_rows(study))
        run.table("losses cache", [counts])
        run.measure("losses_hits", ours=trained, baseline=losses, value=100 * (1 - trained / losses))


def search_cells(run, replay, keys, trials, budget, repeats, population, tournament, hash_seconds) -> None:
    """Search the table with each algorithm, then ask what each cache would have saved."""
    searches = cached_searches(replay, population, tournament)
    found: dict[str, list[Trajectory]] = {name: [] for name in searches}
    with run.progress("searches over cells", repeats * len(searches)) as bar:
        for name, make in searches.items():
            for repeat in range(repeats):
                found[name].append(replay_search(replay, keys, make(), trials, budget, run.seed * 100_000 + repeat))
                bar.advance()
    rows = summary(replay, found, keys.seconds if hash_seconds is None else hash_seconds)
    run.table("searches", rows)
    run.figure("searches", replay_figure(replay, found, keys.seconds if hash_seconds is None else hash_seconds))
    of = {(row["search"], row["cache"]): row for row in rows}
    for name in ("evolution", "random"):
        plain, graph, ours = (of[name, cache] for cache in ("none", "graph", "functional"))
        run.measure(f"hits_{name}", ours=ours["hits %"], baseline=graph["hits %"], value=ours["hits %"])
        times = [row["seconds to the best"] for row in (ours, plain)]
        run.measure(f"time_{name}", ours=times[0], baseline=times[1], value=times[0] / times[1])
    gains = [(of[name, "functional"]["hits %"], of[name, "graph"]["hits %"]) for name in searches]
    ours, graph = np.mean(gains, axis=0)
    run.measure("hits_graph", ours=ours, baseline=graph, value=min(f - g for f, g in gains))
    cells = list(keys.numbers)
    truth = [unshared_key(cell) for cell in cells]
    errors = collisions([keys(cell) for cell in cells], truth)
    run.measure("splits", ours=errors.keys, baseline=errors.functions, value=100 * errors.split)
    run.measure("merges", ours=errors.keys, baseline=errors.functions, value=100 * errors.merged)
    graphs = len({cell.key for cell in cells})
    run.note(f"{len(cells)} labelled cells are {graphs} graphs, {errors.functions} functions and {errors.keys} keys; "
             f"a hash takes {1000 * keys.seconds:.1f} ms of processor time.")  # fmt: skip


def study_collisions(run, keys, count) -> None:
    """Errors of the hash by the bits of the mantissa and the steps of the probe, on some of the cells."""
    cells = sorted(keys.numbers, key=unshared_key)[:count]  # those of equal function are together
    probes = {steps: cell_probe(steps) for steps in (0, 1)}
    numbers = {steps: [probe.numbers(cell) for cell in cells] for steps, probe in probes.items()}
    numbers[4] = [keys.numbers[cell] for cell in cells]
    bits = (1, 2, 4, 8, 12, 16, 24, 32, 40, 48, 52)
    rows = collision_study(numbers, [unshared_key(cell) for cell in cells], bits)
    run.table("collisions", rows)
    figure = Figure(figsize=(5, 3.4))
    axis = figure.subplots()
    for steps in numbers:
        line = [row for row in rows if row["budget"] == steps]
        axis.plot(bits, [100 * row["merged"] for row in line], marker="o", label=f"merged, {steps} steps")
        axis.plot(bits, [100 * row["split"] for row in line], "--", marker="x", label=f"split, {steps} steps")
    axis.set_xlabel("bits of the mantissa")
    axis.set_ylabel("functions, %")
    axis.legend(fontsize="small")
    run.figure("collisions", figure)


def study_noise(run, replay, keys, trials, repeats, population, tournament) -> None:
    """Elitism with noisy evaluations: a lucky cell would stay for ever, if nothing averaged or forgot."""
    if not repeats:
        run.unmeasured("noise", "noise_repeats=0")
        return
    make = cached_searches(replay, population, tournament)["elitism"]
    seeds = [run.seed * 100_000 + repeat for repeat in range(repeats)]
    with run.progress("noisy searches", 5 * repeats) as bar:
        rows = noise_study(replay, keys, make, trials, seeds, bar.advance)
    run.table("noise", rows)
    tests = {(row["evaluations averaged"], row["remove_prob"]): row["test accuracy %"] for row in rows}
    run.measure("noise", ours=tests[4, 0.0], baseline=tests[1, 0.0], value=tests[4, 0.0] - tests[1, 0.0])


def search_programs(run, count, population, tournament) -> None:
    """Evolve register programs; each is evaluated without and with the cache in turn, which is the timing."""
    with run.progress("register programs", count) as bar:
        found = compare_programs(count, population, tournament, run.seed, bar.advance)
    run.table("programs", [found._asdict()])
    run.measure("programs_speed", ours=count / found.cached_seconds, baseline=count / found.seconds, value=found.speed)
    run.measure("programs_hits", ours=100 * found.hits, baseline=100 * found.text_hits, value=100 * found.hits)
