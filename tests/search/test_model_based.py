"""MCTS, surrogates and successive halving against what they are defined to be."""

import math
import os
import random
import subprocess
import sys

import numpy as np
import pytest

from flambeau.search.algorithms import MCTS, GaussianProcess, NGramRidge, Reinforce, SuccessiveHalving
from flambeau.search.algorithms.surrogate import decision_features
from flambeau.search.algorithms.walk import Walk, random_moves
from flambeau.symbolic import evolve, floatv, intv, oneof, template


@pytest.mark.parametrize("options", [1, 2, 3, 5, 8, 13])
@pytest.mark.parametrize("order", ["interleaved", "sequential"])
def test_bisection_has_the_old_leaves_at_logarithmic_depth(options, order):
    spec = template([intv(0, options - 1), oneof(["a", "b", "c"])]).spec
    seen, deepest = set(), 0

    def explore(moves):
        nonlocal deepest
        walk = Walk(spec, bisect=True, order=order)
        for move in moves:
            walk.take(move)
        if walk.done:
            seen.add(walk.dna())
            deepest = max(deepest, len(moves))
            return
        for move in walk.moves():
            explore([*moves, move])

    explore([])
    assert seen == set(spec) and len(seen) == 3 * options
    assert deepest <= math.ceil(math.log2(options)) + 1


def test_interleaving_halves_every_range_once_before_any_twice():
    walk = Walk(template([intv(0, 7, name="a"), intv(0, 7, name="b")]).spec, bisect=True)
    order = []
    while not walk.done:
        order.append(walk.open[0].point.name)
        walk.take(0)
    assert order == ["a", "b"] * 3


def test_floats_are_halved_to_the_resolution():
    spec = template(floatv(1e-4, 1.0, "log")).spec
    walk = Walk(spec, bisect=True, resolution=1 / 64)
    for move in (1, 0, 1, 1, 0, 1):
        walk.take(move)
    (value,) = walk.dna().to_numbers()
    assert spec.points[0].to_unit(value) == pytest.approx((0b101101 + 0.5) / 64)


def test_random_walks_are_uniform_over_unordered_choices():
    spec, rng = template([oneof([0, oneof(["x", "y"])]), oneof(["p", "q"])]).spec, random.Random(0)
    counts = {}
    for _ in range(4000):
        walk = Walk(spec)
        random_moves(walk, rng)
        counts[walk.dna()] = counts.get(walk.dna(), 0) + 1
    assert len(counts) == 6
    for dna, count in counts.items():
        assert abs(count / 4000 - math.exp(spec.log_prob(dna))) < 0.03


def test_mcts_without_bonus_settles_on_the_best_child():
    spec = template([oneof(["a", "b", "c", "d"]), oneof(["a", "b", "c"])]).spec
    search = MCTS(bonus=0.0)
    search.setup(spec, 0)
    last = []
    for _ in range(60):
        dna = search.propose()
        first, second = dna.to_numbers()
        search.feedback(dna, float(first == 2) + 0.5 * (second == 1))
        last.append((first, second))
    assert set(last[-20:]) == {(2, 1)}


def test_mcts_counts_add_up():
    spec = template([oneof([0, oneof(["x", "y", "z"])]), oneof(["p", "q"])]).spec
    search = MCTS()
    search.setup(spec, 1)
    for _ in range(80):
        dna = search.propose()
        search.feedback(dna, float(len(dna.to_numbers())))
    for node, (visits, total, pending) in search.nodes.items():
        children = [values for path, values in search.nodes.items() if path[:-1] == node and len(path) == len(node) + 1]
        assert pending == 0 and total >= 0
        if children:
            # A node that was drawn when its parent was expanded is visited once before it is expanded itself.
            assert visits - sum(values[0] for values in children) in ((0,) if node == () else (0, 1))
    assert search.nodes[()][0] == 80


def test_mcts_leaves_what_is_always_skipped():
    spec = template([oneof(["bad", "good"]), oneof(["p", "q"])]).spec
    search = MCTS()
    search.setup(spec, 0)
    proposed = []
    for _ in range(60):
        dna = search.propose()
        proposed.append(dna.to_numbers()[0])
        if proposed[-1]:
            search.feedback(dna, 0.5 + 0.1 * dna.to_numbers()[1])
    assert sum(proposed[-30:]) >= 20


def test_mcts_refuses_what_it_cannot_branch_on():
    with pytest.raises(ValueError, match="bisect=True"):
        MCTS().setup(template(floatv(0, 1)).spec, 0)
    with pytest.raises(ValueError, match="custom"):
        MCTS().setup(template(evolve(1, lambda value, rng: value)).spec, 0)


def rows(count, seed=0):
    spec = template([oneof([0, oneof([1, 2])]), oneof([0, 1, 2]), floatv(0, 1)]).spec
    rng = random.Random(seed)
    return [decision_features(spec, spec.random(rng)) for _ in range(count)]


def test_ridge_equals_the_normal_equations():
    some, y = rows(30), np.random.default_rng(0).normal(size=30)
    ridge = NGramRidge(hash_size=64, alpha=0.1)
    ridge.fit(some, y)
    x = ridge.matrix(some)
    weights = np.linalg.solve(x.T @ x + 0.1 * np.eye(64), x.T @ (y - y.mean()))
    np.testing.assert_allclose(ridge.weights, weights, atol=1e-8)
    np.testing.assert_allclose(ridge.predict(some), x @ weights + y.mean(), atol=1e-8)


def test_hashed_features_do_not_depend_on_the_process():
    code = (
        "from flambeau.search.algorithms import NGramRidge;"
        "print(NGramRidge(16).matrix([{'a=1': 1.0, 'b': 0.5, 'c=2/d=0': 1.0}]).tolist())"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1


def test_undue_decisions_have_no_feature():
    spec = template(
        [oneof([0, oneof([1, 2], name="inner")], name="outer"), floatv(1.0, 100.0, "log", name="rate")]
    ).spec
    features = decision_features(spec, spec.from_numbers([0, 10.0]))
    assert features == {"0=0": 1.0, "rate": pytest.approx(0.5)}
    assert "0=1/0=1" in decision_features(spec, spec.from_numbers([1, 1, 10.0]))


def test_gaussian_process_equals_the_textbook_formula():
    some, new = rows(12), rows(5, seed=1)
    y = np.random.default_rng(0).normal(size=12)
    process = GaussianProcess()
    process.fit(some, y)
    names = sorted({name for row in some + new for name in row})

    def matrix(these):
        return np.array([[row.get(name, 0.0) for name in names] for row in these])

    def kernel(a, b):
        return np.exp(-0.5 * ((a[:, None] - b[None]) ** 2).sum(-1) / process.length**2)

    a, b = matrix(some), matrix(new)
    gram = process.factor @ process.factor.T  # the kernel and the chosen noise
    noise = gram[0, 0] - 1.0
    np.testing.assert_allclose(gram, kernel(a, a) + noise * np.eye(12), atol=1e-9)
    inverse = np.linalg.inv(gram)
    mean, deviation = process.predict(new)
    np.testing.assert_allclose(mean, kernel(b, a) @ inverse @ (y - y.mean()) + y.mean(), atol=1e-8)
    variance = 1 - np.einsum("ij,jk,ik->i", kernel(b, a), inverse, kernel(b, a))
    np.testing.assert_allclose(deviation, np.sqrt(variance) * y.std(), atol=1e-8)
    # Expected improvement against its definition, by sampling.
    draws = mean[:, None] + deviation[:, None] * np.random.default_rng(1).normal(size=(5, 200_000))
    np.testing.assert_allclose(process.score(new, 0.3), np.maximum(draws - 0.3, 0).mean(1), atol=0.01)


def test_reinforce_moves_logits_along_the_gradient_of_log_probability():
    spec = template([oneof(["a", "b", "c"])]).spec
    search = Reinforce(rate=0.5)
    search.setup(spec, 0)
    first, second = spec.from_numbers([0]), spec.from_numbers([1])
    search.feedback(first, 0.0)
    search.feedback(second, 1.0)  # the spread is not known yet: no step
    assert all(logits == [0.0] * 3 for logits in search.logits.values())
    search.feedback(second, 1.0)  # mean 0.5, deviation 0.5: advantage 1
    (logits,) = search.logits.values()
    np.testing.assert_allclose(logits, [0.5 * (0 - 1 / 3), 0.5 * (1 - 1 / 3), 0.5 * (0 - 1 / 3)])


def test_successive_halving_promotes_the_best_third():
    spec = template({"budget": oneof([1, 3, 9], name="budget"), "x": oneof(list(range(100)), name="x")}).spec
    search = SuccessiveHalving(eta=3)
    search.setup(spec, 0)
    rungs = {0: [], 1: [], 2: []}
    for _ in range(130):
        dna = search.propose()
        values = spec.to_dict(dna)
        rungs[values["budget"]].append(values["x"])
        search.feedback(dna, float(values["x"]))
    assert len(rungs[0]) > 2 * len(rungs[1]) > 2 * len(rungs[2]) > 0
    assert set(rungs[1]) <= set(rungs[0]) and set(rungs[2]) <= set(rungs[1])
    assert np.mean(rungs[2]) > np.mean(rungs[1]) > np.mean(rungs[0])
    with pytest.raises(ValueError, match="budget: expected one choice"):
        SuccessiveHalving("steps").setup(spec, 0)
