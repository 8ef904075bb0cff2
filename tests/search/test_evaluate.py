import os
import random
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import search_workers as w

from flambeau.search.algorithm import Random
from flambeau.search.evaluate import EvaluationError, search
from flambeau.search.study import RaceConditionError, Study


@pytest.fixture(scope="module")
def uninterrupted():
    """24 trials in batches of 4, inline."""
    return w.outcome(search(w.space, w.Climber(), w.score, 24, deterministic=True, batch=4))


def test_one_and_two_processes_equal_inline(uninterrupted):
    options = dict(backend="process", deterministic=True, batch=4)
    one = search(w.space, w.Climber(), w.slow_score, 24, workers=1, **options)
    two = search(w.space, w.Climber(), w.slow_score, 24, workers=2, **options)
    assert w.outcome(one) == w.outcome(two) == uninterrupted
    assert one.path is None and len({dna for dna, _ in uninterrupted}) > 20


def test_batch_size_changes_the_outcome(uninterrupted):
    other = search(w.space, w.Climber(), w.score, 24, deterministic=True, batch=6)
    assert w.outcome(other) != uninterrupted


def test_killed_workers_are_replaced_and_nothing_changes(tmp_path, uninterrupted):
    deadly = sorted(random.Random(0).sample(range(24), 3))
    evaluate = partial(w.score_or_die, trials=deadly, folder=tmp_path)
    options = dict(backend="process", workers=2, deterministic=True, batch=4)
    study = search(w.space, w.Climber(), evaluate, 24, study=tmp_path / "study.db", **options)
    assert w.outcome(study) == uninterrupted
    assert [trial.id for trial in study.trials() if trial.attempts == 2] == deadly


def test_a_trial_that_kills_every_worker_is_lost():
    study = search(w.space, Random(), w.always_die, 3, backend="process")
    assert [trial.state for trial in study.trials()] == ["done", "lost", "done"]
    assert "died 5 times" in study.trial(1).metadata["error"]


@pytest.mark.parametrize(("backend", "workers"), [("inline", 1), ("process", 2)])
def test_killed_controller_resumes_as_if_nothing_had_happened(tmp_path, uninterrupted, backend, workers):
    path = tmp_path / "study.db"
    command = [sys.executable, w.__file__, str(path), str(tmp_path), backend, str(workers)]
    for stop_at in (5, 15):
        controller = subprocess.Popen(command)
        while not path.exists() or Study(path).finished() < stop_at:
            assert controller.poll() is None
            time.sleep(0.01)
        controller.send_signal(signal.SIGKILL)
        controller.wait()
    assert Study(path).finished() < 24
    subprocess.run(command, check=True, timeout=60)
    assert w.outcome(Study(path)) == uninterrupted


def test_workers_end_with_their_controller(tmp_path):
    path = tmp_path / "study.db"
    controller = subprocess.Popen([sys.executable, w.__file__, str(path), str(tmp_path), "process", "2"])
    while len(pids := list(tmp_path.glob("pid-*"))) < 2:
        time.sleep(0.01)
    controller.send_signal(signal.SIGKILL)
    controller.wait()
    deadline = time.monotonic() + 20
    while any(alive(int(pid.name[4:])) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_an_exception_ends_the_search_and_its_trial_is_handed_out_again(tmp_path):
    with pytest.raises(EvaluationError, match="ArithmeticError: no such number"):
        search(w.space, Random(), w.fail, 4, backend="process", study=tmp_path / "a.db")
    with pytest.raises(ArithmeticError):
        search(w.space, Random(), w.fail, 4, study=tmp_path / "b.db")
    resumed = [search(w.space, Random(), w.score, 4, study=tmp_path / name) for name in ("a.db", "b.db")]
    assert w.outcome(resumed[0]) == w.outcome(resumed[1]) == w.outcome(search(w.space, Random(), w.score, 4))


def test_search_refuses_bad_arguments(tmp_path):
    with pytest.raises(ValueError, match="backend: expected .* got 'threads'"):
        search(w.space, Random(), w.score, 1, backend="threads")
    with pytest.raises(ValueError, match="workers: expected at least 1, got 0"):
        search(w.space, Random(), w.score, 1, backend="process", workers=0)
    with pytest.raises(ValueError, match="workers: expected 1 inline, got 2"):
        search(w.space, Random(), w.score, 1, workers=2)
    with pytest.raises(TypeError, match="cannot be pickled"):
        search(w.space, Random(), lambda value, feedback: 0.0, 1, backend="process")
    with pytest.raises(ValueError, match="in memory"):
        search(w.space, Random(), w.score, 1, backend="process", study=Study())
    with pytest.raises(TypeError, match="expected a reward for trial 0"):
        search(w.space, Random(), lambda value, feedback: None, 1)
    with pytest.raises(RaceConditionError):
        search(w.space, Random(), lambda value, feedback: feedback(1.0) or 2.0, 1)
    assert os.listdir(tmp_path) == []
