import math
import random
from dataclasses import replace

import numpy as np
import pytest

from flambeau.experiment.search.program_search import compare_programs, evolve_programs
from flambeau.search import functional_hash
from flambeau.search.register_programs import (
    OPERATIONS,
    Instruction,
    Machine,
    Mutator,
    Program,
    ProgramProbe,
    Tasks,
    linear_tasks,
    live_code,
)

I = Instruction
# Linear regression by gradient descent: s3 = rate, v1 = weights.
DESCENT = Program(
    setup=(I("scalar_const", (), 3, (0.2,)),),
    predict=(I("inner_product", (0, 1), 1),),
    learn=(
        I("scalar_diff", (0, 1), 2),
        I("scalar_product", (3, 2), 2),
        I("scalar_vector_product", (2, 0), 2),
        I("vector_sum", (1, 2), 1),
    ),
)
TASKS = linear_tasks(tasks=3, seed=0)
PROBE = ProgramProbe(TASKS)


def key(program):
    return functional_hash(program, PROBE)


def descent_by_hand(tasks, rate=0.2):
    """The same in plain loops, one task after the other: errors of training and of validation."""
    found = []
    for t in range(len(tasks.train[0])):
        weights, errors = np.zeros(tasks.train[0].shape[2]), []
        for x, y in zip(tasks.train[0][t], tasks.train[1][t]):
            errors.append(y - x @ weights)
            weights = weights + rate * errors[-1] * x
        errors += [y - x @ weights for x, y in zip(tasks.valid[0][t], tasks.valid[1][t])]
        found.append(errors)
    return np.array(found).T


def test_gradient_descent_on_all_tasks_equals_plain_loops():
    train, valid = Machine().errors(DESCENT, TASKS)
    np.testing.assert_allclose(np.concatenate([train, valid]), descent_by_hand(TASKS), rtol=1e-9, atol=1e-12)
    assert Machine().fitness(DESCENT, TASKS) > 0.99
    nothing = Program((), (), ())
    rms = np.sqrt((TASKS.valid[1] ** 2).mean(1))
    assert Machine().fitness(nothing, TASKS) == pytest.approx(np.mean(1 - 2 / math.pi * np.arctan(rms)))


def test_the_label_is_hidden_from_predict():
    peeks = Program((), (I("scalar_sum", (0, 0), 1),), ())
    assert np.array_equal(Machine().errors(peeks, TASKS)[0].T, TASKS.train[1])


def test_equivalent_programs_have_one_key():
    dead = I("scalar_const", (), 2, (0.7,))
    renamed = Program(
        (I("scalar_const", (), 2, (0.2,)),),
        (I("inner_product", (0, 2), 1),),
        (
            I("scalar_diff", (0, 1), 3),
            I("scalar_product", (2, 3), 3),
            I("scalar_vector_product", (3, 0), 1),
            I("vector_sum", (2, 1), 2),
        ),
    )
    swapped = replace(DESCENT, predict=(I("inner_product", (1, 0), 1),))
    variants = {
        "dead code": replace(DESCENT, learn=(dead, *DESCENT.learn)),
        "dead code at the end": replace(DESCENT, predict=(*DESCENT.predict, dead)),
        "renamed registers": renamed,
        "swapped operands": swapped,
    }
    for name, variant in variants.items():
        assert str(variant) != str(DESCENT) and key(variant) == key(DESCENT), name


def test_sum_is_twice():
    twice = (I("scalar_const", (), 2, (2.0,)), I("inner_product", (0, 0), 1), I("scalar_product", (1, 2), 1))
    added = (I("inner_product", (0, 0), 1), I("scalar_sum", (1, 1), 1))
    assert key(Program((), twice, ())) == key(Program((), added, ()))


def test_a_constant_that_differs_by_a_hundredth_is_seen():
    other = replace(DESCENT, setup=(I("scalar_const", (), 3, (0.2 + 1e-2,)),))
    assert key(other) != key(DESCENT)


def test_every_operation_runs_and_swapping_commutes():
    machine, rng = Machine(4, 3, 2), random.Random(0)
    mutator = Mutator(tuple(OPERATIONS), sizes=(20, 20, 20), machine=machine)
    probe = ProgramProbe(TASKS, machine=machine)
    used = set()
    for _ in range(60):
        program = mutator.random(rng)
        used |= {line.operation for part in (program.setup, program.predict, program.learn) for line in part}
        assert np.isfinite(probe.numbers(program)).all() and 0 <= machine.fitness(program, TASKS) <= 1
        swapped = [
            line._replace(inputs=line.inputs[::-1]) if OPERATIONS[line.operation].commutes else line
            for line in program.predict
        ]
        assert functional_hash(replace(program, predict=tuple(swapped)), probe) == functional_hash(program, probe)
    assert used == set(OPERATIONS)


def test_programs_that_run_away_have_fitness_zero():
    explodes = Program((I("scalar_const", (), 1, (50.0,)),), (I("scalar_product", (1, 1), 1),), ())
    train, valid = Machine().errors(explodes, TASKS)
    assert np.isinf(train[0]).all() and np.isinf(valid).all()
    assert Machine().fitness(explodes, TASKS) == pytest.approx(0.0)
    not_a_number = Program((), (I("scalar_log", (2,), 2), I("scalar_diff", (2, 2), 1)), ())
    assert Machine().fitness(not_a_number, TASKS) == pytest.approx(0.0)
    assert key(explodes) == key(not_a_number)


def test_mutations_are_canonical():
    mutator, rng = Mutator(), random.Random(0)
    kinds = set()
    for _ in range(300):
        before = mutator.random(rng)
        after = mutator.mutate(before, rng)
        changed = [p for p in ("setup", "predict", "learn") if getattr(before, p) != getattr(after, p)]
        assert len(changed) <= 1 and [len(after.setup), len(after.predict), len(after.learn)] == [10, 2, 8]
        for part in changed:
            lines = [a != b for a, b in zip(getattr(before, part), getattr(after, part))]
            kinds.add("one" if sum(lines) == 1 else "all")
    assert kinds == {"one", "all"}
    resizing, program, sizes = Mutator(resize=12), mutator.random(rng), set()
    for _ in range(300):
        program = resizing.mutate(program, rng)
        sizes.add(len(program.predict))
    assert len(sizes) > 3 and max(sizes) <= 12


def test_evolution_is_seeded_and_improves():
    machine = Machine()

    def search(seed):
        fitness = lambda program: machine.fitness(program, TASKS.first(20, 20))  # noqa: E731
        return evolve_programs(fitness, Mutator(), 150, population=30, tournament=5, seed=seed)

    first = search(0)
    assert first == search(0) != search(1)
    assert np.mean(first[-30:]) > np.mean(first[:30])


def test_comparison_with_a_cache():
    found = compare_programs(120, 40, 5, seed=0, advance=lambda: None)
    assert found.hits >= found.text_hits and found.hits > 0.1 and found.wrong <= 0.02


def test_bad_programs_and_tasks():
    for line, said in [
        (I("fly", (), 1), "expected one of"),
        (I("scalar_sum", (1,), 1), "expected 2 inputs and 0 constants"),
        (I("scalar_const", (), 1), "1 constants"),
        (I("scalar_sum", (0, 1), 0), "may not write to s0"),
        (I("vector_sum", (0, 1), 0), "may not write to v0"),
    ]:
        with pytest.raises(ValueError, match=said):
            Program((line,), (), ())
    with pytest.raises(ValueError, match="uses s9, the machine has 4 s"):
        Machine().fitness(Program((I("scalar_sum", (9, 1), 1),), (), ()), TASKS)
    with pytest.raises(ValueError, match="operations: expected names from"):
        Mutator(("fly",))
    with pytest.raises(ValueError, match="train: expected features"):
        Tasks((np.zeros((2, 3)), np.zeros((2, 3))), TASKS.valid)
    with pytest.raises(ValueError, match="at least 1 example each"):
        ProgramProbe(TASKS, train=0)


def test_lines_without_effect_are_left_out_and_the_others_compute_the_same():
    useless = (I("scalar_const", (), 2, (0.5,)), I("scalar_sum", (2, 2), 1))  # s1 is written again by predict
    padded = replace(DESCENT, setup=DESCENT.setup + useless, learn=DESCENT.learn + useless)
    assert live_code(padded) == live_code(DESCENT) == (DESCENT.setup, DESCENT.predict, DESCENT.learn)
    # What predict leaves to its own next run is alive, also where nothing is learned from.
    carried = Program((), (I("vector_sum", (1, 0), 1), I("inner_product", (1, 0), 1)), ())
    assert live_code(carried) == ((), carried.predict, ())
    rng, mutator, shorter = random.Random(0), Mutator(tuple(OPERATIONS), (6, 4, 6)), 0
    for _ in range(300):
        program = mutator.random(rng)
        short = Program(*live_code(program))
        shorter += short != program
        for ours, theirs in zip(PROBE.machine.errors(short, PROBE.tasks), PROBE.machine.errors(program, PROBE.tasks)):
            assert np.array_equal(ours, theirs)
    assert shorter > 200
