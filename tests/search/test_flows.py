"""Search flows on a space small enough to know the answer."""

import pytest

from flambeau.search.algorithm import Random, Sweep
from flambeau.search.algorithms import RegularizedEvolution
from flambeau.search.flows import Split, factorized, joint, separate
from flambeau.symbolic import oneof, template

SPEC = template(
    {"a": oneof([0, 1, 2], name="a"), "b": oneof([0, 1, 2, 3], name="b"), "c": oneof([0, 1], name="c")}
).spec


def ab(point):
    return point.name in ("a", "b")


def evaluate(dna):
    a, b, c = dna.to_numbers()
    return 10.0 * (c == (a + b) % 2) + a + b


def test_split_and_join_give_every_point_once():
    split = Split(SPEC, ab)
    joined = [split.join(one, other) for one in split.chosen for other in split.rest]
    assert sorted(map(repr, joined)) == sorted(map(repr, SPEC))
    for where in (lambda point: True, lambda point: False):
        with pytest.raises(ValueError, match="where"):
            Split(SPEC, where)


def test_joint_sweep_finds_the_best():
    trials = joint(SPEC, Sweep(), evaluate, 24)
    assert max(trial.reward for trial in trials) == 15.0
    assert all(trial.reward == evaluate(trial.dna) for trial in trials)


def test_separate_keeps_what_it_found():
    stages = [(ab, Sweep()), (lambda point: not ab(point), Sweep())]
    trials = separate(SPEC, stages[::-1], evaluate, 4)
    assert [trial.dna.to_numbers()[2] for trial in trials[:2]] == [0, 1]
    trials = separate(SPEC, [(ab, Sweep()), (lambda point: not ab(point), Sweep())], evaluate, 24 // 12 * 2)
    assert len(trials) == 4
    first, second = trials[:2], trials[2:]
    best = max(first, key=lambda trial: trial.reward)
    assert all(trial.dna.to_numbers()[:2] == best.dna.to_numbers()[:2] for trial in second)


def test_factorized_rewards_outer_choices_with_their_best():
    seen = []

    class Watched(Sweep):
        def feedback(self, dna, reward):
            seen.append((tuple(dna.to_numbers()), reward))

    trials = factorized(SPEC, ab, Watched(), Sweep, evaluate, 24, 2)
    assert len(trials) == 24 and len(seen) == 12
    assert all(reward == 10.0 + sum(numbers) for numbers, reward in seen)


def test_flows_are_deterministic():
    def flow():
        return factorized(SPEC, ab, RegularizedEvolution(4, 2), Random, evaluate, 30, 3, seed=5)

    assert flow() == flow()
