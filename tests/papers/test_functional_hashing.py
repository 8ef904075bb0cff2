"""The experiment runs whole; searches over cells take the same trials with and without a cache."""

import base64
import json
import math
import struct

import numpy as np
import pytest

from flambeau.data.nas.nasbench import DigitsNasBench, enumerate_cells
from flambeau.data.nas.nasbench101 import masked_crc32c
from flambeau.experiment import run_experiment
from flambeau.experiment.search.cache_replay import (
    CellKeys,
    cell_probe,
    first_of,
    noisy_search,
    replay_search,
    simulated,
    summary,
)
from flambeau.papers import load
from flambeau.search import FunctionalCache, Study, sample
from flambeau.search.cells import CellReplay, cached_searches


@pytest.fixture(scope="module")
def replay():
    return CellReplay(DigitsNasBench())


@pytest.fixture(scope="module")
def keys():
    return CellKeys(cell_probe())


def test_smoke(tmp_path):
    result = run_experiment(load("functional_hashing"), preset="smoke", out=tmp_path, seed=0)
    for claim in result["claims"]:
        assert claim["value"] is not None or claim["why"], claim
    assert {row["cache"] for row in result["tables"]["searches"]} == {"none", "raw", "graph", "functional"}
    assert next(claim for claim in result["claims"] if claim["name"] == "splits")["value"] == 0


def test_one_domain_alone(tmp_path):
    experiment = load("functional_hashing")
    tree = experiment.tree("smoke")
    tree.rebind({"domain": "programs"})
    result = run_experiment(experiment, tree=tree, out=tmp_path, preset="smoke", seed=0)
    whys = {claim["name"]: claim["why"] for claim in result["claims"]}
    assert whys["hits_evolution"] == "domain=programs" and whys["losses_hits"] == "domain=programs"
    tree.rebind({"domain": "cats"})
    with pytest.raises(ValueError, match="domain: expected all or one of cells, programs, losses, got 'cats'"):
        run_experiment(experiment, tree=tree, out=tmp_path / "other", preset="smoke", seed=0)


@pytest.mark.parametrize("name", ["evolution", "elitism", "random"])
def test_a_real_cache_hits_where_the_replay_says(replay, keys, name):
    """The post-hoc count of the replay is what FunctionalCache does inside `sample`, trial by trial."""
    make = cached_searches(replay, population=10, tournament=3)[name]
    found = replay_search(replay, keys, make(), 60, math.inf, seed=1)
    study, cache = Study(), FunctionalCache(lambda node: keys(node.build().pruned))
    for node, feedback in sample(replay.template, make(), 60, seed=1, study=study, cache=cache):
        feedback(float(replay.accuracy[replay.table.row[node.build().key]]))
    trials = study.trials()
    assert [replay.row(trial.dna) for trial in trials] == found.rows.tolist()
    assert [not trial.cached for trial in trials] == found.new["functional"].tolist()


def test_simulated_time(replay, keys):
    make = cached_searches(replay, population=10, tournament=3)["random"]
    found = replay_search(replay, keys, make(), 50, math.inf, seed=0)
    spent = simulated(replay, found, hash_seconds=0.5)
    seconds = replay.seconds[found.rows]
    assert spent["none"][-1] == pytest.approx(seconds.sum())
    trained = seconds[found.new["functional"]].sum()
    assert spent["functional"][-1] == pytest.approx(trained + 0.5 * found.new_structure.sum())
    assert (found.new["functional"] <= found.new["graph"]).all() and (found.new["graph"] <= found.new["raw"]).all()
    assert (found.new["graph"] <= found.new_structure).all()
    rows = summary(replay, {"random": [found]}, 0.5)
    assert [row["of no cache"] for row in rows if row["cache"] == "none"] == [1.0]
    short = replay_search(replay, keys, make(), 50, float(seconds[:10].sum()) - 1e-6, seed=0)
    assert short.rows.tolist() == found.rows[:10].tolist()
    assert first_of([1, 2, 1, 3]).tolist() == [True, True, False, True]


def test_mutated_and_random_cells_are_in_the_table(replay):
    for make in cached_searches(replay, population=5, tournament=2).values():
        algorithm = make()
        algorithm.setup(replay.spec, 0)
        for _ in range(30):
            dna = algorithm.propose()
            assert replay.row(dna) is not None
            algorithm.feedback(dna, replay(dna))


def test_noisy_search_with_and_without_a_cache(replay, keys):
    make = cached_searches(replay, population=10, tournament=3)["elitism"]
    plain = noisy_search(replay, make(), None, 60, 0.05, seed=0)
    assert plain.hits == 0 and 0.2 < plain.test < 1
    cached = noisy_search(replay, make(), FunctionalCache(keys), 60, 0.05, seed=0)
    averaged = noisy_search(replay, make(), FunctionalCache(keys, max_evals=4), 60, 0.05, seed=0)
    assert cached.hits > averaged.hits > 0 and cached.seconds < averaged.seconds < plain.seconds * 1.3
    exact = noisy_search(replay, make(), None, 60, 0.0, seed=0)
    found = replay_search(replay, keys, make(), 60, math.inf, seed=0)
    best = int(found.rows[np.argmax(replay.accuracy[found.rows])])
    assert exact.test == pytest.approx(float(replay.table.accuracy[best, 1, -1].mean()))


def test_a_file_of_nas_bench_101(tmp_path):
    """All cells of at most 3 vertices, in the real format."""
    path, names = tmp_path / "tiny.tfrecord", {"conv3x3": "conv3x3-bn-relu", "conv1x1": "conv1x1-bn-relu"}
    rows = []
    for number, cell in enumerate(enumerate_cells(3)):
        adjacency = "".join(str(bit) for row in cell.matrix for bit in row)
        operations = ",".join(["input", *(names.get(name, name) for name in cell.operations), "output"])
        for repeat in range(2):
            message = struct.pack("<BdBdBd", 0x11, 100.0 + number, 0x21, 0.5 + number / 20, 0x29, 0.4 + repeat / 50)
            metrics = base64.b64encode(bytes([0x0A, len(message)]) + message).decode()
            rows.append(json.dumps([cell.key, 108, adjacency, operations, metrics]).encode())
    with path.open("wb") as file:
        for row in rows:
            length = struct.pack("<Q", len(row))
            file.write(length + struct.pack("<I", masked_crc32c(length)) + row + bytes(4))
    experiment = load("functional_hashing")
    tree = experiment.tree("smoke")
    tree.rebind({"domain": "cells", "data": str(path), "budget": 1500.0, "hash_seconds": 10.0, "noise_repeats": 0})
    result = run_experiment(experiment, tree=tree, out=tmp_path / "run", preset="smoke", seed=0)
    rows = {(row["search"], row["cache"]): row for row in result["tables"]["searches"]}
    assert rows["random", "functional"]["best accuracy %"] <= 80 and rows["random", "functional"]["hits %"] > 30
    assert {claim["name"]: claim["why"] for claim in result["claims"]}["noise"] == "noise_repeats=0"
    assert path.with_suffix(".npz").exists()
