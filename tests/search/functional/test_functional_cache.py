import itertools
import math
import random
import subprocess
import sys
import threading
import time
from collections import OrderedDict
from functools import partial
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
import search_workers as w
from search_workers import by_key, grid, logged, modulo

from flambeau.search import FunctionalCache, Random, Study, functional_hash, sample, search
from flambeau.search.algorithms import MCTS, HillClimb, RegularizedEvolution, Reinforce
from flambeau.search.functional.cache import CacheError, Result
from flambeau.search.functional.key import FAILURES
from flambeau.search.study import RaceConditionError
from flambeau.symbolic import symbolize


class Counted:
    """An evaluation that remembers what it was called with."""

    def __init__(self, function):
        self.function, self.calls = function, []

    def __call__(self, value):
        self.calls.append(value)
        return self.function(value)


def test_evaluated_once_a_key():
    cache, evaluate = FunctionalCache(lambda n: 20 + n % 3), Counted(float)
    results = [cache.evaluate(n, evaluate) for n in range(7)]
    assert evaluate.calls == [0, 1, 2]
    assert results[0] == Result(0.0, False, 1, 20) and results[3] == Result(0.0, True, 1, 20)
    assert [r.value for r in results] == [0, 1, 2, 0, 1, 2, 0]
    counts = cache.statistics()
    assert (counts["misses"], counts["full_hits"], counts["size"], counts["evaluations"]) == (3, 4, 3, 3)
    assert counts["seconds_saved"] > 0 and counts["hash_seconds"] > 0


def test_equal_structure_is_not_hashed_again():
    hashes = Counted(lambda node: 50 + node.n % 2)
    cache = FunctionalCache(hashes)
    point = symbolize(Counted_point)
    for n in (1, 2, 1, 3, 1):
        cache.evaluate(point(n=n), lambda node: float(node.n % 2))
    assert [node.n for node in hashes.calls] == [1, 2, 3]
    assert cache.statistics()["structural_hits"] == 2


class Counted_point:
    def __init__(self, n: int) -> None:
        self.n = n


def test_mean_of_the_first_evaluations_exactly():
    values = [0.1 * i + 1e-9 * i**3 for i in range(10)]
    supply = iter(values)
    cache = FunctionalCache(lambda _: 77, max_evals=4)
    results = [cache.evaluate(n, lambda _: next(supply)) for n in range(8)]
    assert [r.n_evals for r in results] == [1, 2, 3, 4, 4, 4, 4, 4]
    assert [r.cached for r in results] == [False] * 4 + [True] * 4
    for n in range(1, 5):
        assert results[n - 1].value == math.fsum(values[:n]) / n
    assert results[-1].value == math.fsum(values[:4]) / 4
    assert cache.statistics()["partial_hits"] == 3


def test_mean_of_several_objectives():
    supply = iter([(1.0, 5.0), (2.0, 9.0)])
    cache = FunctionalCache(lambda _: 77, max_evals=2)
    assert cache.evaluate(0, lambda _: next(supply)).value == (1.0, 5.0)
    assert cache.evaluate(0, lambda _: next(supply)).value == (1.5, 7.0)


def test_least_recently_used_goes_first_as_in_an_ordered_dict():
    rng, capacity = random.Random(0), 7
    cache, reference = FunctionalCache(lambda n: 100 + n, capacity=capacity), OrderedDict()
    for _ in range(500):
        n = rng.randrange(20)
        hit = n in reference
        reference[n] = float(n)
        reference.move_to_end(n)
        if len(reference) > capacity:
            reference.popitem(last=False)
        assert cache.evaluate(n, float).cached == hit
        with cache.ledger.store.transaction() as db:
            kept = [key - 100 for (key,) in db.execute("SELECT key FROM entry ORDER BY used")]
        assert kept == list(reference)
    assert cache.statistics()["size"] == capacity


def test_forget_every_and_random_removal():
    evaluate = Counted(lambda _: 1.0)
    cache = FunctionalCache(lambda _: 33, forget_every=3)
    assert [cache.evaluate(0, evaluate).cached for _ in range(9)] == [False, True, True, True] * 2 + [False]
    always = FunctionalCache(lambda _: 33, remove_prob=1.0)
    assert [always.evaluate(0, evaluate).cached for _ in range(6)] == [False, True] * 3
    assert always.statistics()["forgotten"] == 3

    def misses(seed):
        cache = FunctionalCache(lambda _: 33, remove_prob=0.2, seed=seed)
        return [i for i in range(500) if not cache.evaluate(0, evaluate).cached]

    assert misses(1) == misses(1) != misses(2)
    assert 60 < len(misses(1)) < 110  # every fifth hit is the last: 500 / 6


def test_a_failure_costs_one_evaluation_a_kind():
    class Broken:
        def numbers(self, candidate):
            return [1.0, candidate] if candidate != "raises" else [int("x")]

    cache = FunctionalCache(partial(functional_hash, probe=Broken()))
    evaluate = Counted(lambda candidate: {"raises": None}.get(candidate, math.nan))
    with pytest.warns(UserWarning, match="ValueError: invalid literal"):
        results = [cache.evaluate(c, evaluate) for c in [math.nan, math.inf, "raises", -math.inf, math.nan, "raises"]]
    kinds = ["nan", "inf", "exception", "inf", "nan", "exception"]
    assert [r.key for r in results] == [FAILURES[kind] for kind in kinds]
    assert len(evaluate.calls) == 3 and {r.value for r in results} == {None}
    assert [r.cached for r in results] == [False] * 3 + [True] * 3


def test_an_exception_of_a_sound_candidate_is_not_remembered():
    cache, calls = FunctionalCache(lambda _: 33), itertools.count()
    flaky = lambda _: 1.0 / next(calls)  # noqa: E731
    with pytest.raises(ZeroDivisionError):
        cache.evaluate(0, flaky)
    assert cache.evaluate(0, flaky) == Result(1.0, False, 1, 33)
    with pytest.raises(ValueError, match="expected finite numbers, got nan; return None for an infeasible"):
        FunctionalCache(lambda _: 34).evaluate(0, lambda _: math.nan)
    with pytest.raises(TypeError, match="expected it to return a number"):
        FunctionalCache(lambda _: 34).evaluate(0, lambda _: "good")


def test_eight_threads_evaluate_once():
    cache, evaluate = FunctionalCache(lambda _: 33), Counted(lambda _: time.sleep(0.05) or 5.0)
    results = []
    threads = [threading.Thread(target=lambda: results.append(cache.evaluate(0, evaluate))) for _ in range(8)]
    [thread.start() for thread in threads], [thread.join() for thread in threads]
    assert len(evaluate.calls) == 1 and [r.value for r in results] == [5.0] * 8
    assert sum(not r.cached for r in results) == 1


def test_a_waiting_thread_takes_over_from_one_that_failed():
    cache, started = FunctionalCache(lambda _: 33), threading.Event()

    def fail(_):
        started.set()
        time.sleep(0.05)
        raise ArithmeticError

    def first():
        with pytest.raises(ArithmeticError):
            cache.evaluate(0, fail)

    thread = threading.Thread(target=first)
    thread.start(), started.wait()
    assert cache.evaluate(0, lambda _: 2.0) == Result(2.0, False, 1, 33)
    thread.join()


def test_a_file_outlives_the_cache_and_tasks_are_apart(tmp_path):
    path = tmp_path / "deep" / "fec.sqlite"
    FunctionalCache(lambda _: 33, store=path).evaluate(0, lambda _: 1.0)
    again, other = FunctionalCache(lambda _: 33, store=path), FunctionalCache(lambda _: 33, store=path, task="other")
    assert again.evaluate(0, float).value == 1.0
    assert other.evaluate(0, lambda _: 2.0) == Result(2.0, False, 1, 33)
    assert again.statistics()["size"] == 2


# -- in a search -----------------------------------------------------------------------------------------------------


ALGORITHMS = {
    "evolution": lambda: RegularizedEvolution(10, 3),
    "random": Random,
    "hill climbing": HillClimb,
    "MCTS": MCTS,
    "REINFORCE": Reinforce,
}


@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_trajectory_is_the_same_trial_by_trial(name):
    def run(cache):
        evaluate, trials = Counted(by_key), []
        for value, feedback in sample(grid, ALGORITHMS[name](), 120, name=None, study=(study := Study()), cache=cache):
            feedback(evaluate(value))
        trials = [(trial.dna, trial.reward, trial.state) for trial in study.trials()]
        return trials, len(evaluate.calls), [trial.cached for trial in study.trials()]

    plain, all_of_them, flags = run(None)
    cache = FunctionalCache(modulo)
    cached, evaluations, cached_flags = run(cache)
    assert cached == plain and all_of_them == 120 and not any(flags)
    assert evaluations == len({modulo_of(dna) for dna, _, _ in plain}) == 120 - sum(cached_flags)
    counts = cache.statistics()
    assert counts["full_hits"] == sum(cached_flags) and counts["misses"] == evaluations


def modulo_of(dna):
    return sum(dna.to_numbers()) % 5


def test_noisy_rewards_are_averaged_in_the_study():
    rewards = []
    cache = FunctionalCache(lambda _: 33, max_evals=2)
    study = Study()
    for _, feedback in sample(grid, Random(), 4, study=study, cache=cache):
        rewards.append(random.Random(feedback.seed).random())
        feedback(rewards[-1])
    mean = sum(rewards) / 2
    assert [trial.reward for trial in study.trials()] == [rewards[0], mean, mean, mean]
    assert [trial.metadata.get("n_evals") for trial in study.trials()] == [None, 2, 2, 2]
    assert [trial.cached for trial in study.trials()] == [False, False, True, True]


def test_skips_are_remembered_and_early_stops_are_not():
    study = Study()
    for value, feedback in sample(grid, Random(), 60, study=study, cache=FunctionalCache(modulo)):
        feedback.skip("odd") if modulo(value) % 2 else feedback(1.0)
    assert {trial.state for trial in study.trials() if modulo_of(trial.dna) % 2} == {"skipped"}
    assert sum(not trial.cached for trial in study.trials()) == 5

    study, cache = Study(), FunctionalCache(lambda _: 33)
    stop = lambda trial, others: trial.id == 0  # noqa: E731
    for _, feedback in sample(grid, Random(), 3, study=study, cache=cache, early_stopping=stop):
        feedback.add_measurement(1, 0.25 if feedback.id == 0 else 0.75)
        feedback.should_stop_early()
        feedback.done()
    assert [trial.reward for trial in study.trials()] == [0.25, 0.75, 0.75]
    assert [trial.cached for trial in study.trials()] == [False, False, True]


def test_a_loop_that_is_left_gives_its_key_back():
    cache = FunctionalCache(lambda _: 33)
    for _ in sample(grid, Random(), 3, cache=cache):
        break
    assert cache.evaluate(0, lambda _: 4.0) == Result(4.0, False, 1, 33)


def test_a_forgotten_trial_is_handed_out_again_and_keeps_its_key():
    cache, seen = FunctionalCache(lambda _: 33), []
    with pytest.warns(UserWarning, match="handed out again"):
        for _, feedback in sample(grid, Random(), 2, cache=cache):
            seen.append(feedback.id)
            if len(seen) == 2:
                feedback(1.0)
    assert seen == [0, 0]
    with pytest.raises(RaceConditionError):
        feedback(2.0)


def test_infeasible_rewards_are_skips():
    study, calls = Study(), []
    for _, feedback in sample(grid, Random(), 4, study=study, cache=FunctionalCache(lambda _: 33), infeasible="skip"):
        calls.append(feedback.id)
        feedback(math.nan)
    assert calls == [0] and [trial.state for trial in study.trials()] == ["skipped"] * 4


# -- shared by workers -----------------------------------------------------------------------------------------------


def evaluations(folder):
    return sorted(path.name.split("-")[0] for path in folder.glob("1*-*"))


def test_processes_share_one_evaluation_a_key(tmp_path):
    cache = FunctionalCache(w.modulo, store=tmp_path / "fec.sqlite")
    options = dict(deterministic=True, batch=10, seed=3)
    evaluate = partial(w.logged, folder=tmp_path)
    study = search(
        w.grid, RegularizedEvolution(10, 3), evaluate, 60, backend="process", workers=2, cache=cache, **options
    )
    keys = {str(100 + modulo_of(trial.dna)) for trial in study.trials()}
    assert evaluations(tmp_path) == sorted(keys)
    plain = search(w.grid, RegularizedEvolution(10, 3), w.by_key, 60, **options)
    assert w.outcome(study) == w.outcome(plain)
    assert sum(trial.cached for trial in study.trials()) == 60 - len(keys)
    again = search(w.grid, Random(), evaluate, 20, cache=cache)  # the file answers everything
    assert all(trial.cached for trial in again.trials()) and evaluations(tmp_path) == sorted(keys)


def test_the_key_of_a_killed_worker_goes_to_the_next(tmp_path):
    cache = FunctionalCache(w.one_key, store=tmp_path / "fec.sqlite")
    evaluate = partial(w.logged_or_die, folder=tmp_path)
    study = search(w.grid, Random(), evaluate, 6, backend="process", workers=2, cache=cache)
    assert [trial.state for trial in study.trials()] == ["done"] * 6
    assert len(evaluations(tmp_path)) == 1 and (tmp_path / "died").exists()


def test_two_programs_share_a_file(tmp_path):
    """Without a common study: each process evaluates all points, together every key once."""
    command = [sys.executable, w.__file__, "cache", str(tmp_path / "fec.sqlite"), str(tmp_path)]
    programs = [subprocess.Popen(command) for _ in range(2)]
    assert [program.wait() for program in programs] == [0, 0]
    assert evaluations(tmp_path) == [str(key) for key in range(100, 105)]


def test_bad_arguments(tmp_path):
    with pytest.raises(TypeError, match="hash_fn: expected a function"):
        FunctionalCache(5)
    for arguments in [{"max_evals": 0}, {"remove_prob": 1.5}, {"capacity": 0}, {"forget_every": 1}]:
        with pytest.raises(ValueError, match=next(iter(arguments))):
            FunctionalCache(modulo, **arguments)
    with pytest.raises(ValueError, match="hash_fn: expected a whole number of at most 63 bits"):
        FunctionalCache(lambda _: -1).evaluate(0, float)
    with pytest.raises(ValueError, match="need one with a store"):
        search(grid, Random(), logged, 4, backend="process", cache=FunctionalCache(modulo))
    with pytest.raises(ValueError, match="group"):
        sample(grid, Random(), 4, group="a", cache=FunctionalCache(modulo))
    (tmp_path / "text").write_text("not a cache")
    with pytest.raises(CacheError, match="cannot be used as a functional cache"):
        FunctionalCache(modulo, store=tmp_path / "text")
    Study(tmp_path / "study.db")
    with pytest.raises(CacheError, match="not a functional cache"):
        FunctionalCache(modulo, store=tmp_path / "study.db")
