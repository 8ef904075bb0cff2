import math

import pytest

pytest.importorskip("ray.tune", reason="needs Ray Tune: pip install 'ray[tune]'")

from flambeau.search.algorithm import Algorithm, Dedup, Random, Sweep
from flambeau.search.tune import TuneSearcher
from flambeau.symbolic import oneof

SPACE = [oneof([1, 2, 3]), oneof([4, 5])]


class Recorder(Random):
    multi_objective = True

    def setup(self, spec, seed):
        super().setup(spec, seed)
        self.heard = []

    def feedback(self, dna, reward):
        self.heard.append(reward)


def test_suggestions_end_and_losses_are_negated():
    class Listener(Sweep):
        heard = []

        def feedback(self, dna, reward):
            self.heard.append(reward)

    searcher = TuneSearcher(SPACE, Listener(), metric="loss", mode="min")
    values = []
    while (config := searcher.suggest(f"t{len(values)}")) != TuneSearcher.FINISHED:
        values.append(tuple(config["value"]))
    assert sorted(values) == [(i, j) for i in (1, 2, 3) for j in (4, 5)]
    searcher.on_trial_complete("t3", {"loss": 2.0})
    searcher.on_trial_complete("t0", {"loss": math.nan})
    searcher.on_trial_complete("t1", {"loss": 1.0}, error=True)
    searcher.on_trial_complete("t2", None)
    searcher.on_trial_complete("unknown", {"loss": 1.0})
    assert Listener.heard == [-2.0]


def test_several_metrics():
    searcher = TuneSearcher(SPACE, Recorder(), metric=["accuracy", "seconds"], mode=["max", "min"])
    searcher.suggest("a")
    searcher.on_trial_complete("a", {"accuracy": 0.5, "seconds": 3.0})
    assert searcher.algorithm.heard == [(0.5, -3.0)]
    with pytest.raises(ValueError, match="Random takes one"):
        TuneSearcher(SPACE, Random(), metric=["a", "b"], mode=["max", "min"])
    with pytest.raises(ValueError, match="got a constant"):
        TuneSearcher([1], Random(), metric="a")


def test_save_and_restore(tmp_path):
    whole, first, second = (TuneSearcher(SPACE, Dedup(Random()), metric="a") for _ in range(3))
    suggested = [whole.suggest(str(i)) for i in range(6)]
    assert [first.suggest(str(i)) for i in range(3)] == suggested[:3]
    first.save(str(tmp_path / "state"))
    second.restore(str(tmp_path / "state"))
    assert [second.suggest(str(i)) for i in range(3, 6)] == suggested[3:]
    second.on_trial_complete("0", {"a": 1.0})
    assert isinstance(second.algorithm, Algorithm) and "0" not in second.pending
