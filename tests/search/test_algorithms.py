"""What every search algorithm promises: determinism, states, any order of feedback, indifference to the program."""

import json
import random

import pytest

from flambeau.search.algorithms import (
    MCTS,
    NSGA2,
    SMBO,
    BayesianOptimization,
    HillClimb,
    LSTMController,
    RegularizedEvolution,
    Reinforce,
    SuccessiveHalving,
)
from flambeau.symbolic import DesignPrior, floatv, intv, manyof, oneof, template

ALGORITHMS = {
    "regularized evolution": lambda **o: RegularizedEvolution(12, 4, **o),
    "hill climb": lambda **o: HillClimb(**o),
    "nsga2": lambda **o: NSGA2(8, **o),
    "mcts": lambda **o: MCTS(0.1, bisect=True, **o),
    "mcts sequential": lambda **o: MCTS(0.1, bisect=True, order="sequential", **o),
    "reinforce": lambda **o: Reinforce(entropy=0.01, **o),
    "lstm": lambda **o: LSTMController(hidden=8, entropy=0.01, **o),
    "smbo": lambda **o: SMBO(candidates=16, initial=4, **o),
    "bayesian": lambda **o: BayesianOptimization(candidates=16, initial=4, **o),
    "successive halving": lambda **o: SuccessiveHalving(**o),
}
each = pytest.mark.parametrize("make", ALGORITHMS.values(), ids=ALGORITHMS)


def program(one="a", two="b"):
    """A conditional space with every kind of decision; `one` and `two` do not matter to its spec."""
    return {
        "budget": oneof([1, 3, 9], name="budget"),
        "block": oneof([{"kind": one, "width": oneof([8, 16, 32])}, {"kind": two, "rate": floatv(0.001, 1.0, "log")}]),
        "sorted": manyof(2, [one + "x", one + "y", one + "z", one + "w"], sorted=True),
        "repeated": manyof(2, [one, two, one + two], distinct=False),
        "depth": intv(1, 6),
    }


SPEC = template(program()).spec


def reward(dna, algorithm):
    """Any fixed function of the decisions."""
    values = SPEC.to_dict(dna)
    score = float(sum(values.values())) + 2.0 * values["depth"]
    return (score, -float(values["budget"])) if algorithm.multi_objective else score


def follow(algorithm, trials):
    found = []
    for _ in range(trials):
        dna = algorithm.propose()
        algorithm.feedback(dna, reward(dna, algorithm))
        found.append(dna)
    return found


def started(make, seed=0, **options):
    algorithm = make(**options)
    algorithm.setup(SPEC, seed)
    return algorithm


@each
def test_same_seed_same_proposals(make):
    first = follow(started(make, 3), 30)
    assert follow(started(make, 3), 30) == first
    assert follow(started(make, 4), 30) != first
    for dna in first:
        SPEC.validate(dna)


@each
def test_setup_starts_afresh(make):
    algorithm = started(make, 5)
    first = follow(algorithm, 30)
    algorithm.setup(SPEC, 5)
    assert follow(algorithm, 30) == first


@each
@pytest.mark.parametrize("trials", [1, 30])
def test_state_goes_through_json(make, trials):
    original = started(make)
    follow(original, trials)
    outstanding = [original.propose() for _ in range(3)]
    state = json.loads(json.dumps(original.state_dict(), allow_nan=False))
    continued = started(make, 0)
    continued.load_state_dict(state)
    for dna in outstanding:
        original.feedback(dna, reward(dna, original))
        continued.feedback(dna, reward(dna, continued))
    assert follow(continued, 10) == follow(original, 10)


@each
def test_a_taken_state_does_not_change_later(make):
    algorithm = started(make)
    follow(algorithm, 20)
    state = algorithm.state_dict()
    before = json.dumps(state)
    follow(algorithm, 20)
    assert json.dumps(state) == before


@each
def test_recover_replays_a_history(make):
    original = started(make)
    history = [(dna, reward(dna, original)) for dna in follow(original, 25)]
    recovered = started(make)
    recovered.recover(history)
    assert follow(recovered, 10) == follow(original, 10)


@each
def test_feedback_in_any_order_and_never(make):
    rng, algorithm = random.Random(0), started(make)
    outstanding, proposed = [], 0
    for _ in range(150):
        if outstanding and rng.random() < 0.5:
            dna = outstanding.pop(rng.randrange(len(outstanding)))
            if rng.random() < 0.9:  # the others are skipped, or lost with their worker
                algorithm.feedback(dna, reward(dna, algorithm))
        else:
            outstanding.append(SPEC.validate(algorithm.propose()))
            proposed += 1
    assert proposed > 50


@each
def test_many_proposals_before_any_feedback(make):
    algorithm = started(make)
    proposals = [algorithm.propose() for _ in range(40)]
    assert len(set(proposals)) > 10  # workers that start together do different things
    for dna in reversed(proposals):
        algorithm.feedback(dna, reward(dna, algorithm))
    SPEC.validate(algorithm.propose())


@each
def test_feedback_on_points_found_elsewhere(make):
    algorithm, rng = started(make), random.Random(1)
    for _ in range(30):
        dna = SPEC.random(rng)
        algorithm.feedback(dna, reward(dna, algorithm))
    follow(algorithm, 30)


@each
def test_proposals_do_not_depend_on_the_program(make):
    ours, theirs = started(make), make()
    other = template(program("something", "else"))
    assert other.spec == SPEC and str(other.decode(SPEC.first())) != str(template(program()).decode(SPEC.first()))
    theirs.setup(other.spec, 0)
    assert follow(ours, 30) == follow(theirs, 30)


@each
def test_prior_rules_out_what_it_gives_no_weight(make):
    prior = DesignPrior({"depth": [0, 0, 1, 1, 0, 0], "block": [0, 1], "block.candidates[1].rate": [0, 0, 1, 0]})
    for dna in follow(started(make, prior=prior), 30):
        values = SPEC.to_dict(dna)
        assert values["depth"] in (2, 3)
        assert values["block"] == 1
        assert 0.001**0.5 * 0.99 <= values["block.candidates[1].rate"] <= 0.001**0.25 * 1.01


@pytest.mark.parametrize("name", [name for name in ALGORITHMS if name != "successive halving"])
def test_learns_what_is_good(name):
    """Later proposals are better than random ones, on a sum that every decision adds to."""
    rng, gains = random.Random(0), []
    for seed in range(3):
        algorithm = started(ALGORITHMS[name], seed)
        last = follow(algorithm, 90)[-30:]
        rewards = [reward(dna, algorithm) for dna in last + [SPEC.random(rng) for _ in range(30)]]
        score = [r[0] if isinstance(r, tuple) else r for r in rewards]
        gains.append(sum(score[:30]) / 30 - sum(score[30:]) / 30)
    assert sum(gains) / len(gains) > 1.0


@each
def test_wrong_kind_of_reward(make):
    algorithm = started(make)
    dna = algorithm.propose()
    with pytest.raises(TypeError, match="reward: expected"):
        algorithm.feedback(dna, 1.0 if algorithm.multi_objective else (1.0, 2.0))


@pytest.mark.parametrize(
    "make, said",
    [
        (lambda: RegularizedEvolution(10, 11), "tournament"),
        (lambda: MCTS(bonus=-1), "bonus"),
        (lambda: MCTS(order="random"), "order"),
        (lambda: Reinforce(rate=0), "rate"),
        (lambda: SMBO(epsilon=2), "epsilon"),
        (lambda: SMBO(candidates=0), "candidates"),
        (lambda: SuccessiveHalving(eta=1), "eta"),
        (lambda: LSTMController(options=4), "options"),
    ],
)
def test_bad_arguments(make, said):
    with pytest.raises(ValueError, match=said):
        make()
