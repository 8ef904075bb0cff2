"""PyGlove: a program becomes a search space by replacing values, and any algorithm searches it (Peng et al. 2020)."""

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.stats import kendalltau, mannwhitneyu
from torch import nn

from flambeau.data import Batches
from flambeau.data.nas.nasbench import DigitsNasBench, digits_split
from flambeau.data.nas.nasbench101 import load_nasbench101
from flambeau.experiment import Claim, experiment
from flambeau.search.algorithms import BayesianOptimization
from flambeau.search.cells import CellReplay, cell_searches, optuna_tpe
from flambeau.search.sample import sample
from flambeau.search.weight_sharing.cell_supernet import images_and_labels, shared_and_alone
from flambeau.symbolic import floatv, oneof, symbolize
from flambeau.training import Trainer

# fmt: off
CLAIMS = [
    Claim("evolution_150", "evolution's mean rank over random search's, after 150 trials", unit="x", at_most=0.6),
    Claim("evolution_150_p", "one-sided Mann-Whitney test of that", unit="p", at_most=0.01),
    Claim("evolution_300", "the same after 300 trials", unit="x", at_most=0.45),
    Claim("evolution_300_p", "one-sided Mann-Whitney test of that", unit="p", at_most=0.01),
    Claim("redrawing_150", "evolution with mutations that may redraw the old value, over random search", unit="x"),
    Claim("redrawing_300", "the same after 300 trials", unit="x"),
    Claim("tpe_150", "evolution's mean rank over that of Optuna's TPE, after 150 trials", unit="x"),
    Claim("lines", "rebound values that turn the static program into a search space", unit="lines", at_most=5),
    Claim("real", "validation accuracy of the best searched program over the static one", unit="points", at_least=0.0),
    Claim("real_test", "the same programs on test data, which chose nothing", unit="points"),
    Claim("supernet", "rank correlation of shared-weight and stand-alone accuracy of cells", unit="tau", at_least=0.2),
]
PRESETS: dict[str, dict[str, Any]] = {
    "smoke": {"repeats": 2, "trials": 30, "population": 10, "tournament": 3, "real_trials": 2, "real_repeats": 1,
              "training.steps": 5, "supernet_steps": 3, "supernet_cells": 5, "tpe_repeats": 1},
    "paper": {"data": "nasbench_full.tfrecord", "trials": 20000, "seconds": 5e6, "population": 100, "tournament": 10,
              "tpe_repeats": 0, "supernet_steps": 0},
}
# fmt: on


@experiment("pyglove", claims=CLAIMS, presets=PRESETS)
def run(
    run: Any,
    *,
    data: str | None = None,
    trials: int = 300,
    seconds: float | None = None,
    repeats: int = 100,
    population: int = 50,
    tournament: int = 10,
    tpe_repeats: int = 5,
    training: Trainer = symbolize(Trainer)(steps=100),
    real_trials: int = 24,
    real_repeats: int = 3,
    supernet_steps: int = 600,
    supernet_cells: int = 50,
) -> None:
    """Search NAS-Bench cells by table, a digits classifier by training, and cells by shared weights.

    Args:
        data: a NAS-Bench-101 `.tfrecord` file; by default the shipped table of cells trained on digits.
        trials: most trials of a search.
        seconds: most simulated seconds of training of a search.
        repeats: searches with each algorithm.
        population: size of the evolved population.
        tournament: size of the tournaments in it.
        tpe_repeats: searches with Optuna's TPE, which is slow; 0 for none.
        training: how the digits classifiers are trained, with Adam at the program's rate.
        real_trials: classifiers trained in a search.
        real_repeats: searches over classifiers.
        supernet_steps: training steps of the super-network; 0 for none.
        supernet_cells: cells whose ranking by the super-network is judged.
    """
    table = DigitsNasBench() if data is None else load_nasbench101(data)
    ranks = search_table(run, CellReplay(table), trials, seconds, repeats, population, tournament, tpe_repeats)
    for at in (150, 300):
        run.measure(f"evolution_{at}_p", value=compare(run, ranks, f"evolution_{at}", "evolution", "random", at))
        compare(run, ranks, f"redrawing_{at}", "evolution, redrawing", "random", at)
    if "Optuna TPE" in ranks:
        compare(run, ranks, "tpe_150", "evolution", "Optuna TPE", 150)
    else:
        run.unmeasured("tpe_150", "optuna is not installed, or tpe_repeats=0")
    search_by_training(run, training, real_trials, real_repeats)
    if supernet_steps and data is None:
        shared, alone = shared_and_alone(
            table, steps=supernet_steps, count=supernet_cells, seed=run.seed, progress=run.progress
        )
        tau = kendalltau(shared, alone).statistic
        run.measure("supernet", ours=np.mean(shared), baseline=np.mean(alone), value=tau)
    else:
        run.unmeasured("supernet", "cells with shared weights are trained on the digits only")


def search_table(run, replay, trials, seconds, repeats, population, tournament, tpe_repeats) -> dict[str, np.ndarray]:
    """Rank in percent of the best cell found `[repeats, trials]`, for each way to search."""

    searches, ranks = cell_searches(replay, trials, population, tournament), {}
    with run.progress("searches", repeats * len(searches)) as bar:
        for name, search in searches.items():
            found = []
            for repeat in range(repeats):
                found.append(replay.ranks(search(run.seed * 100_000 + repeat), seconds))
                bar.advance()
            ranks[name] = np.array(found)
    if tpe := optuna_tpe(replay, min(150, trials), [run.seed * 1000 + i for i in range(tpe_repeats)]):
        ranks["Optuna TPE"] = np.array([replay.ranks(trials, seconds) for trials in tpe])
    run.table("searches", [
        {"search": name} | {f"rank % at {at}": rank[:, min(at, rank.shape[1]) - 1].mean() for at in (50, 150, 300)}
        for name, rank in ranks.items()
    ])  # fmt: skip
    figure = Figure(figsize=(7, 4))
    axes = figure.add_subplot(xlabel="trials", ylabel="rank of the best cell found, %", yscale="log")
    for name, rank in ranks.items():
        axes.plot(np.arange(1, rank.shape[1] + 1), rank.mean(0), label=name)
    axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1.0, 1.0))
    run.figure("search", figure)
    return ranks


def compare(run, ranks: dict[str, np.ndarray], claim: str, name: str, baseline: str, at: int) -> float:
    """Measure a claim about mean ranks after `at` trials; returns the p-value of the difference."""
    ours, theirs = (ranks[which][:, min(at, ranks[which].shape[1]) - 1] for which in (name, baseline))
    run.measure(claim, ours=ours.mean(), baseline=theirs.mean(), value=ours.mean() / theirs.mean())
    return mannwhitneyu(ours, theirs, alternative="less").pvalue


def search_by_training(run, training: Trainer, trials: int, repeats: int) -> None:
    """Rebind four values of a static program into a space, and let Bayesian optimisation train its candidates."""
    train, valid, test = map(images_and_labels, digits_split())
    layer, relu = symbolize(nn.Linear), symbolize(nn.ReLU)
    static = symbolize(classifier)(hidden=layer(64, 32), activation=relu(), head=layer(32, 10), rate=2e-2)
    changes = {
        "hidden.out_features": oneof([16, 32, 64, 128], name="width"),
        "head.in_features": oneof([16, 32, 64, 128], name="width"),
        "activation": oneof([relu(), symbolize(nn.Tanh)(), symbolize(nn.GELU)()]),
        "rate": floatv(3e-4, 3e-2, "log"),
    }
    space = static.clone()
    space.rebind(changes)

    def accuracies(program, name, seed):
        torch.manual_seed(seed)
        model, rate = program.build()
        trainer = replace(training, optimizer=partial(torch.optim.Adam, lr=rate))
        trainer.fit(model, loss, Batches(train, 64), folder=run.folder / "train" / name, seed=seed)
        return [float((model(images).argmax(-1) == labels).float().mean()) for images, labels in (valid, test)]

    rows = []
    with run.progress("classifiers", repeats * (trials + 1)) as bar:
        for repeat in range(repeats):
            seed, found = run.seed * 100 + repeat, []
            before = accuracies(static, f"{repeat}-static", seed)
            bar.advance()
            for program, feedback in sample(space, BayesianOptimization(), trials, seed=seed):
                found.append(accuracies(program, f"{repeat}-{feedback.id}", seed))
                feedback(found[-1][0])
                bar.advance()
            rows.append(dict(zip(("static", "static test", "best", "best test"), before + max(found))))
    run.table("classifiers", rows)
    run.measure("lines", value=len(changes))
    for claim, ending in (("real", ""), ("real_test", " test")):
        ours, baseline = (100 * np.mean([row[name + ending] for row in rows]) for name in ("best", "static"))
        run.measure(claim, ours=ours, baseline=baseline, value=ours - baseline)


def classifier(hidden: nn.Module, activation: nn.Module, head: nn.Module, rate: float) -> tuple[nn.Module, float]:
    """The static program: a network of one hidden layer, and its learning rate (tuned by hand for 100 steps)."""
    return nn.Sequential(hidden, activation, head), rate


def loss(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])
