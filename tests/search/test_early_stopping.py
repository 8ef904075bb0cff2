import pytest

from flambeau.search.algorithm import Sweep
from flambeau.search.early_stopping import ASHA, MedianStopping
from flambeau.search.sample import sample
from flambeau.search.study import Measurement, Study, Trial
from flambeau.symbolic import DNA, oneof


def trial(*rewards, state="done", first=1):
    curve = tuple(Measurement(step, reward, {}) for step, reward in enumerate(rewards, first))
    return Trial(0, DNA(), state, None, curve, {}, 0, 1)


def test_median_rule():
    others = [trial(0.0, 0.2, 0.4), trial(0.0, 0.4, 0.8), trial(0.0, 0.6, 1.2)]  # means to step 2: 0.1, 0.2, 0.3
    policy = MedianStopping(min_trials=3)
    assert policy(trial(0.0, 0.19, state="running"), others)
    assert not policy(trial(0.0, 0.2, state="running"), others)
    assert not policy(trial(0.5, 0.0, state="running"), others)  # its best counts
    assert not MedianStopping(min_trials=4)(trial(0.0, 0.0), others)
    assert not MedianStopping(warmup_steps=3, min_trials=3)(trial(0.0, 0.0), others)
    assert not policy(trial(0.0, 0.0), [trial(1.0), trial(1.0), trial(1.0)])  # none got as far
    assert not policy(trial(0.0, 0.0), [trial(9.0, 9.0, state="skipped")] * 5)


def test_successive_halving_rungs():
    policy = ASHA(min_steps=2, reduction=2)  # rungs 2, 4, 8
    others = [trial(0, 5), trial(0, 3), trial(0, 1)]
    assert policy(trial(0, 2.9), others)  # best two of four: 5 and 3
    assert not policy(trial(0, 3), others)
    assert not policy(trial(-9), others)  # before the first rung
    assert not policy(trial(0, 5, -9), others)  # between rungs
    assert not policy(trial(0, 0), [])  # the first to come
    assert policy(trial(0, 0, 0, 0), [trial(0, 0, 0, 1)])
    assert not policy(trial(0, 0, 0, 0), [trial(9, 9, 9)])  # judged at rung 4, where nobody else was
    with pytest.raises(ValueError, match="reduction >= 2"):
        ASHA(reduction=1)


def test_a_search_saves_most_of_its_steps():
    """Asynchronous halving on curves that grow towards their trial's value: the best survives, most work is saved."""
    study, steps = Study(), 0
    for value, feedback in sample([oneof(list(range(27)))], Sweep(), study=study, early_stopping=ASHA(1, 3)):
        quality = value[0] * 7 % 27
        for step in range(1, 28):
            feedback.add_measurement(step, quality * (1 - 0.5**step))
            steps += 1
            if feedback.should_stop_early():
                break
        feedback.done({"steps": step})
    assert study.best().metadata["steps"] == 27 and study.best().reward == pytest.approx(26, abs=1e-6)
    assert steps < 0.5 * 27 * 27


def test_deterministic_search_judges_by_earlier_batches_only():
    seen = []

    def policy(trial, others):
        seen.append((trial.id, [other.id for other in others]))
        return False

    options = dict(deterministic=True, batch=3, early_stopping=policy)
    for _, feedback in sample([oneof(list(range(9)))], Sweep(), 7, **options):
        assert not feedback.should_stop_early()  # nothing measured yet
        feedback.add_measurement(1, 0.0)
        feedback.should_stop_early()
        feedback.done()
    assert seen == [(i, list(range(i // 3 * 3))) for i in range(7)]
