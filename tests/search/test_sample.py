import math
import random
import sys
import threading
import time
import warnings
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import search_workers as w

import flambeau.search
from flambeau.search.algorithm import Algorithm, Dedup, Random, Sweep
from flambeau.search.coordinator import Coordinator, Turn, new_owner, trial_seed
from flambeau.search.early_stopping import ASHA
from flambeau.search.sample import poll_result, sample
from flambeau.search.study import RaceConditionError, Study, StudyError
from flambeau.symbolic import oneof, template

SPACE = [oneof([1, 2, 3]), oneof(["a", "b"])]


def test_every_value_once_and_the_best():
    study, seen = Study(), []
    for value, feedback in sample(SPACE, Sweep(), study=study):
        seen.append((value[0], value[1]))
        feedback(-abs(value[0] - 2), metadata={"letter": value[1]})
    assert sorted(seen) == [(i, c) for i in (1, 2, 3) for c in "ab"]
    assert study.best().reward == 0.0 and study.best().metadata == {"letter": "a"}
    assert study.status == "exhausted" and study.finished() == 6


def test_trial_seeds_depend_on_study_seed_and_id_only():
    seeds = {seed: [f.seed for _, f in sample(SPACE, Random(), 5, seed=seed) if f(0.0) is None] for seed in (0, 1)}
    assert seeds[0] == [trial_seed(0, i) for i in range(5)] and len({*seeds[0], *seeds[1]}) == 10


def test_unfinished_trial_is_handed_out_again_with_a_warning():
    ids = []
    with pytest.warns(UserWarning, match="trial 0 is handed out again"):
        for _, feedback in sample(SPACE, Random(), 2):
            ids.append(feedback.id)
            if len(ids) != 1:
                feedback(0.0)
    assert ids == [0, 0, 1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _, feedback in sample(SPACE, Random(), 3):
            feedback.skip()


def test_feedback_on_a_finished_trial():
    study = Study()
    for _, feedback in sample(SPACE, Random(), 3, study=study):
        [lambda f=feedback: f(1.0), feedback.skip][feedback.id % 2]()
        for late in (
            lambda f=feedback: f(2.0),
            feedback.skip,
            feedback.done,
            lambda f=feedback: f.add_measurement(1, 2),
        ):
            with pytest.raises(RaceConditionError, match=f"trial {feedback.id} .* finished already"):
                late()
    assert [trial.reward for trial in study.trials()] == [1.0, None, 1.0]


@pytest.mark.parametrize("reward", [math.nan, math.inf, (1.0, math.nan)])
def test_reward_that_is_not_finite(reward):
    loop = sample(SPACE, Random(), 1)
    _, feedback = next(loop)
    with pytest.raises(ValueError, match="reward: expected finite numbers, got"):
        feedback(reward)
    with pytest.raises(ValueError, match="reward: expected finite numbers, got"):
        feedback.add_measurement(1, reward)
    study = Study()
    for _, feedback in sample(SPACE, w.Climber(), 2, study=study, infeasible="skip"):
        feedback(reward)
    assert [(trial.state, trial.reward) for trial in study.trials()] == [("skipped", None)] * 2
    assert "nan" in study.trial(0).metadata["reason"] or "inf" in study.trial(0).metadata["reason"]


def test_bad_arguments():
    loop = sample(SPACE, Random(), 1)
    _, feedback = next(loop)
    with pytest.raises(TypeError, match="reward: expected a number .* got 'high'"):
        feedback("high")
    with pytest.raises(ValueError, match="step: expected at least 0, got -1"):
        feedback.add_measurement(-1, 0.0)
    with pytest.raises(ValueError, match="needs a measurement"):
        feedback.done()
    with pytest.raises(TypeError, match="that JSON has, got {'model': <object"):
        feedback(1.0, {"model": object()})
    feedback.add_measurement(1, 0.0, {"loss": math.nan})
    assert feedback._coordinator.study.trial(0).measurements[0].metrics == {"loss": None}
    for constant in ([1, 2], lambda: [1, 2], template([1, 2]), [oneof([1])]):
        with pytest.raises(ValueError, match="space: .* got a constant"):
            sample(constant, Random(), 1)
    with pytest.raises(ValueError, match="n: expected at least 1"):
        sample(SPACE, Random(), 0)
    with pytest.raises(ValueError, match="batch: expected at least 1"):
        sample(SPACE, Random(), 1, deterministic=True, batch=0)
    with pytest.raises(ValueError, match="infeasible: expected"):
        sample(SPACE, Random(), 1, infeasible="ignore")
    with pytest.raises(ValueError, match="name: the study is called 'main', got 'other'"):
        sample(SPACE, Random(), 1, study=Study(), name="other")


def test_measurements_done_and_restart():
    study = Study()
    for value, feedback in sample(SPACE, Random(), 2, study=study):
        for step in (1, 2, 3, 2):  # the last: a restart from step 2
            feedback.add_measurement(step, value[0] + step, {"loss": 1 / step})
        feedback.done()
    trial = study.trial(0)
    assert [m.step for m in trial.measurements] == [1, 2] and trial.measurements[1].metrics == {"loss": 0.5}
    assert trial.reward == trial.measurements[-1].reward


def test_end_loop_stops_every_worker_and_reopen_goes_on(tmp_path):
    path, count = tmp_path / "study.db", 0
    other = sample(SPACE, Random(), 10, study=path)
    for _, feedback in sample(SPACE, Random(), 10, study=path):
        count += 1
        feedback(0.0)
        if feedback.id == 3:
            feedback.end_loop()
    assert count == 4 and list(other) == [] and list(sample(SPACE, Random(), 10, study=path)) == []
    Study(path).status = "open"
    assert [f.id for _, f in sample(SPACE, Random(), 10, study=path) if f(0.0) is None] == [4, 5, 6, 7, 8, 9]


def test_poll_result_and_continuing_by_name():
    for _, feedback in sample(SPACE, Random(), 3, name="polled"):
        feedback(float(feedback.id))
        assert poll_result("polled").best().id == feedback.id
    assert len([f(0.0) for _, f in sample(SPACE, Random(), 5, name="polled")]) == 2
    assert len({trial.dna for trial in poll_result("polled").trials()}) > 1
    with pytest.raises(ValueError, match="nearest: \\['polled'\\]"):
        poll_result("poled")
    with pytest.raises(StudyError, match="another space"):
        sample([oneof([1, 2])], Random(), 1, name="polled")


def test_nested_sampling():
    best = {}
    for outer, feedback in sample([oneof([1, 2])], Sweep(), name="outer"):
        inner = Study(name=f"inner-{feedback.id}")
        for value, score in sample([oneof([10, 20, 30])], Sweep(), study=inner):
            score(value[0] * outer[0])
        best[outer[0]] = inner.best().reward
        feedback(inner.best().reward)
    assert best == {1: 30, 2: 60} and poll_result("outer").best().reward == 60


def test_where_splits_a_space_into_an_outer_and_an_inner_search():
    space, best = [oneof([1, 2], name="width"), oneof([10, 20, 30], name="depth")], {}
    for partial, feedback in sample(space, Sweep(), where=lambda hyper: hyper.label == "width"):
        inner = Study()
        for value, score in sample(partial, Sweep(), study=inner):
            score(value[0] * value[1])
        assert inner.count() == 3
        best[partial[0]] = inner.best().reward
        feedback(inner.best().reward)
    assert best == {1: 30, 2: 60}
    with pytest.raises(ValueError, match="got a constant"):
        sample(space, Sweep(), where=lambda hyper: False)


class Pareto(Algorithm):
    """Keeps all reward vectors, like any algorithm of several objectives."""

    multi_objective = True

    def setup(self, spec, seed):
        self.spec, self.rng, self.rewards = spec, random.Random(seed), []

    def propose(self):
        return self.spec.random(self.rng)

    def feedback(self, dna, reward):
        self.rewards.append(reward)

    def state_dict(self):
        return {"rewards": self.rewards}


def test_several_objectives_pass_through(tmp_path):
    algorithm, study = Pareto(), Study(tmp_path / "study.db")
    for value, feedback in sample([oneof(list(range(8)))], algorithm, 30, study=study):
        with pytest.raises(ValueError, match="Pareto expects a tuple, one number an objective, got 1.0"):
            feedback(1.0)
        feedback((float(value[0]), float(min(value[0], 4) * -1 if value[0] < 6 else -9)))
    assert algorithm.rewards == [trial.reward for trial in study.trials()] and len(algorithm.rewards) == 30
    front = {trial.reward for trial in study.front()}
    assert front == {
        r for r in algorithm.rewards if not any(o != r and o[0] >= r[0] and o[1] >= r[1] for o in algorithm.rewards)
    }
    assert len(front) > 2
    with pytest.raises(StudyError, match="several objectives"):
        study.best()
    with pytest.raises(ValueError, match="early_stopping"):
        sample(SPACE, Pareto(), 1, early_stopping=ASHA())
    loop = sample(SPACE, w.Climber(), 1)
    with pytest.raises(ValueError, match="Climber expects one number, got \\(1.0, 2.0\\)"):
        next(loop)[1]((1.0, 2.0))


def test_two_processes_share_one_file(tmp_path):
    import multiprocessing

    context, path = multiprocessing.get_context("spawn"), tmp_path / "study.db"
    crew = [context.Process(target=w.loop_on, args=(path, 60)) for _ in range(2)]
    for process in crew:
        process.start()
    for process in crew:
        process.join()
        assert process.exitcode == 0
    trials = Study(path).trials()
    assert [trial.id for trial in trials] == list(range(60)) and all(trial.state == "done" for trial in trials)
    assert len({trial.dna for trial in trials}) > 50
    assert sorted(p.name for p in tmp_path.iterdir() if "partial" in p.name) == []


def test_loop_in_pieces_equals_the_whole(tmp_path):
    whole, pieces = Study(), tmp_path / "study.db"
    for value, feedback in sample(w.space, w.Climber(), 12, study=whole):
        feedback(w.score(value, feedback))
    rng = random.Random(0)
    while Study(pieces).finished() < 12:
        for value, feedback in sample(w.space, w.Climber(), 12, study=pieces):
            if feedback.id in (2, 5, 6) and rng.random() < 0.7:
                break  # leaves its trial to the next loop
            feedback(w.score(value, feedback))
    assert w.outcome(Study(pieces)) == w.outcome(whole)


ALGORITHMS = {
    "RegularizedEvolution": dict(population=6, tournament=2),
    "HillClimb": {},
    "MCTS": {},
    "Reinforce": {},
    "LSTMController": {},
    "SMBO": {},
    "BayesianOptimization": {},
}


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_continues_exactly_from_a_file(tmp_path, name):
    def make():
        return getattr(flambeau.search, name)(**ALGORITHMS[name])

    def run(study, counts):
        for count in counts:
            for value, feedback in sample(SPACE, make(), count, study=study, deterministic=True, batch=4):
                feedback(value[0] + (value[1] == "b") + random.Random(feedback.seed).random())
        return w.outcome(study)

    assert run(Study(tmp_path / "pieces.db"), [3, 6, 13, 20]) == run(Study(), [20])


def test_a_study_in_memory_is_continued():
    whole, pieces = Study(), Study()
    for study, counts in ((whole, [12]), (pieces, [5, 12])):
        for count in counts:
            for value, feedback in sample(w.space, w.Climber(), count, study=study):
                feedback(w.score(value, feedback))
    assert w.outcome(pieces) == w.outcome(whole)


def test_another_algorithm_recovers_from_the_history(tmp_path):
    path = tmp_path / "study.db"
    for _, feedback in sample(SPACE, Random(), 3, study=path):
        feedback(0.0)
    for _, feedback in sample(SPACE, Dedup(Random()), study=path):
        feedback(0.0)
    trials = Study(path).trials()
    assert len({trial.dna for trial in trials}) == 6


def test_group_shares_a_trial(tmp_path):
    path = tmp_path / "study.db"
    a, b = (sample(SPACE, Random(), 4, study=path, group="pair") for _ in range(2))
    other = sample(SPACE, Random(), 4, study=path)
    (value, mine), (same, yours), (_, theirs) = next(a), next(b), next(other)
    assert (mine.id, yours.id, theirs.id) == (0, 0, 1) and list(value) == list(same)
    mine(1.0)
    with pytest.raises(RaceConditionError):
        yours(2.0)
    assert next(b)[1].id == 2 and next(a)[1].id == 2


def test_lease_expires_and_heartbeat_keeps_it(tmp_path):
    spec = template(SPACE).spec
    coordinator = Coordinator(Study(tmp_path / "study.db"), spec, Random(), n=1, lease=0.2)
    assert coordinator.acquire("elsewhere|1").id == 0
    assert coordinator.acquire("elsewhere|2") is Turn.WAIT
    for _ in range(4):
        time.sleep(0.1)
        coordinator.heartbeat("elsewhere|1")
    assert coordinator.acquire("elsewhere|2") is Turn.WAIT
    time.sleep(0.25)
    assert coordinator.acquire("elsewhere|2").attempts == 2
    with pytest.raises(RaceConditionError, match="handed to another worker"):
        coordinator.complete("elsewhere|1", 0, 1.0, {})
    coordinator.complete("elsewhere|2", 0, 2.0, {})
    assert coordinator.acquire("elsewhere|1") is Turn.END


def test_loop_beats_for_a_body_longer_than_the_lease(tmp_path):
    path = tmp_path / "study.db"
    coordinator = Coordinator(Study(path), template(SPACE).spec, Random(), n=1, lease=0.2)
    for _, feedback in sample(SPACE, Random(), 1, study=path, lease=0.2, group="a group may live anywhere"):
        time.sleep(0.5)
        assert coordinator.acquire(new_owner()) is Turn.WAIT
        feedback(0.0)


def test_threads_share_a_deterministic_study_in_memory():
    def run(threads):
        study = Study()

        def loop():
            for value, feedback in sample(w.space, w.Climber(), 12, study=study, deterministic=True, batch=3):
                time.sleep(0.002)
                feedback(w.score(value, feedback))

        crew = [threading.Thread(target=loop) for _ in range(threads)]
        for thread in crew:
            thread.start()
        for thread in crew:
            thread.join()
        return w.outcome(study)

    assert run(1) == run(3) and len(run(1)) == 12


def test_progress_counts_finished_trials():
    steps = []

    class Display:
        def __init__(self, description, total):
            assert (description, total) == ("search", 5)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            steps.append("closed")

        def advance(self, n=1):
            steps.append(n)

    for _, feedback in sample(SPACE, Random(), 5, progress=Display):
        feedback(0.0)
    assert steps == [1, 1, 1, 1, 1, "closed"]
