import math

import pytest
import torch

from flambeau.data import digits
from flambeau.experiment.representation.few_labels import FewLabels, draw_few_labels, few_labels, probe_score


def test_all_methods_get_the_same_nested_draws():
    labels = torch.arange(60) % 3
    seen: dict[str, dict] = {"one": {}, "other": {}}

    def method(name):
        def score(rows, seed):
            seen[name][len(rows) // 3, seed] = rows
            return 0.0

        return score

    few_labels({name: method(name) for name in seen}, labels, counts=(2, 5, 20), seeds=(0, 7))
    assert set(seen["one"]) == {(count, seed) for count in (2, 5, 20) for seed in (0, 7)}
    for (count, seed), rows in seen["one"].items():
        assert torch.equal(rows, seen["other"][count, seed])
        assert labels[rows].bincount().tolist() == [count] * 3
        larger = seen["one"][{2: 5, 5: 20, 20: 20}[count], seed]
        assert set(rows.tolist()) <= set(larger.tolist())
    assert not torch.equal(seen["one"][5, 0], seen["one"][5, 7])


def test_gains_are_paired():
    result = FewLabels({"ours": {5: [0.9, 0.5]}, "baseline": {5: [0.8, 0.2]}}, (0, 1))
    gain, error = result.gain("ours", "baseline", 5)
    assert gain == pytest.approx(0.2) and error == pytest.approx(0.1)  # differences 0.1 and 0.3
    assert result.mean("ours", 5) == pytest.approx(0.7)
    assert result.rows()[1] == {
        "method": "baseline",
        "labels a class": 5,
        "mean": pytest.approx(0.5),
        "deviation": pytest.approx(0.6 / math.sqrt(2)),
    }
    assert math.isnan(FewLabels({"a": {5: [0.9]}, "b": {5: [0.8]}}, (0,)).gain("a", "b", 5)[1])


def test_more_labels_of_digits_are_better_and_a_probe_of_pixels_beats_one_of_noise():
    train, test = digits().split((0.5, 0.5))
    noise = torch.randn(len(train), 64, generator=torch.Generator().manual_seed(0))
    methods = {
        "pixels": probe_score(train.images.flatten(1), train.labels, test.images.flatten(1), test.labels),
        "noise": probe_score(noise, train.labels, noise[: len(test)], test.labels[: len(noise)]),
    }
    result = few_labels(methods, train.labels, counts=(1, 10), seeds=(0, 1))
    assert result.mean("pixels", 10) > 0.85 > result.mean("pixels", 1) > 0.4
    assert result.mean("noise", 10) < 0.2
    figure = draw_few_labels(result)
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["pixels", "noise"]


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        (dict(methods={}), "methods: at least one"),
        (dict(counts=()), "counts: at least one"),
        (dict(seeds=()), "seeds: at least one"),
        (dict(counts=(0,)), "count must be at least 1"),
        (dict(counts=(3,)), "class 0 has 2 cases, 3 are wanted"),
    ],
)
def test_bad_input(keywords, message):
    with pytest.raises(ValueError, match=message):
        few_labels(**{"methods": {"a": lambda rows, seed: 0.0}, "labels": torch.tensor([0, 0, 1, 1, 1]), **keywords})
