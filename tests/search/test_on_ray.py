import os
import sys
from functools import partial
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import search_workers as w

from flambeau.search import EvaluationError, FunctionalCache, Random, Sweep, search
from flambeau.search.algorithms import RegularizedEvolution
from flambeau.symbolic import oneof

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
ray = pytest.importorskip("ray", reason="needs Ray: pip install 'flambeau[search]'")


@pytest.fixture(scope="module", autouse=True)
def cluster():
    path = os.pathsep.join([str(Path(w.__file__).parent), *sys.path])
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=80 << 20,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": path}},
    )
    yield
    ray.shutdown()


def test_one_and_two_tasks_and_a_killed_one_equal_inline(tmp_path):
    options = dict(deterministic=True, batch=4)
    inline = w.outcome(search(w.space, w.Climber(), w.score, 16, **options))
    one = search(w.space, w.Climber(), w.slow_score, 16, backend="ray", workers=1, **options)
    assert w.outcome(one) == inline
    evaluate = partial(w.score_or_die, trials=[2, 9], folder=tmp_path)
    two = search(w.space, w.Climber(), evaluate, 16, backend="ray", workers=2, study=tmp_path / "study.db", **options)
    assert w.outcome(two) == inline
    assert [trial.id for trial in two.trials() if trial.attempts == 2] == [2, 9]


def test_errors_in_a_task():
    with pytest.raises(EvaluationError, match="ArithmeticError: no such number"):
        search(w.space, Random(), w.fail, 4, backend="ray")
    with pytest.raises(ValueError, match="got a constant"):
        search([1], Random(), w.score, 4, backend="ray")


def test_lambdas_reach_tasks():
    factor = 3
    study = search([oneof([1, lambda: 2])], Sweep(), lambda value, feedback: factor * value[0], 2, backend="ray")
    assert sorted(trial.reward for trial in study.trials()) == [3, 6]


def test_tasks_share_one_evaluation_a_key(tmp_path):
    cache = FunctionalCache(w.modulo, store=tmp_path / "fec.sqlite")
    options = dict(deterministic=True, batch=10, seed=3)
    evaluate = partial(w.logged, folder=tmp_path)
    study = search(w.grid, RegularizedEvolution(10, 3), evaluate, 40, backend="ray", workers=2, cache=cache, **options)
    assert sorted(path.name[:3] for path in tmp_path.glob("1*-*")) == ["100", "101", "102", "103", "104"]
    assert w.outcome(study) == w.outcome(search(w.grid, RegularizedEvolution(10, 3), w.by_key, 40, **options))
    assert cache.statistics()["evaluations"] == 5 and sum(trial.cached for trial in study.trials()) == 35


def test_a_killed_task_gives_its_key_to_the_next(tmp_path):
    cache = FunctionalCache(w.one_key, store=tmp_path / "fec.sqlite")
    evaluate = partial(w.logged_or_die, folder=tmp_path)
    study = search(w.grid, Random(), evaluate, 5, backend="ray", workers=2, cache=cache)
    assert [trial.state for trial in study.trials()] == ["done"] * 5
    assert len(list(tmp_path.glob("1*-*"))) == 1 and (tmp_path / "died").exists()


def test_algorithm_in_a_tune_script(tmp_path):
    tune = pytest.importorskip("ray.tune", reason="needs Ray Tune: pip install 'ray[tune]'")
    from flambeau.search.tune import TuneSearcher

    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    searcher = TuneSearcher([oneof([1, 5, 3])], Sweep(), metric="loss", mode="min")
    tuner = tune.Tuner(
        lambda config: {"loss": (config["value"][0] - 5) ** 2},
        tune_config=tune.TuneConfig(search_alg=searcher, num_samples=8, max_concurrent_trials=1, reuse_actors=True),
        run_config=tune.RunConfig(storage_path=str(tmp_path), verbose=0),
    )
    results = tuner.fit()
    assert sorted(result.metrics["loss"] for result in results) == [0, 4, 16]
    assert results.get_best_result("loss", "min").config["value"] == [5]
