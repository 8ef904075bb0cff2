"""The protocol of few labels: nested, stratified, patients apart, the same for every method."""

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import nn

from flambeau.data import ImageSet
from flambeau.experiment.representation import label_efficiency as protocol
from flambeau.experiment.representation.label_efficiency import Splits, label_efficiency, robustness, summary
from flambeau.training import Trainer

TRAINER = Trainer(steps=4)


def cases(count=60, classes=3, slices=2, seed=0):
    """Class n is brighter by n; slices of one patient follow each other."""
    generator = torch.Generator().manual_seed(seed)
    groups = torch.arange(count) // slices
    labels = groups % classes
    images = 0.2 * labels.view(-1, 1, 1, 1) + 0.3 * torch.rand(count, 1, 8, 8, generator=generator)
    return ImageSet(images, labels, [f"class {n}" for n in range(classes)], groups)


def encoder():
    return nn.Conv2d(1, 4, 3)


@pytest.fixture
def recorded(monkeypatch):
    """What each fine-tuning was given."""
    seen = []
    original = protocol.fine_tune

    def record(network, train, **arguments):
        seen.append((network, train, {k: v.clone() for k, v in network.state_dict().items()}, arguments))
        return original(network, train, **arguments)

    monkeypatch.setattr(protocol, "fine_tune", record)
    return seen


def test_parts_are_nested_stratified_and_the_same_for_every_method(recorded):
    fixed = encoder()
    before = {name: value.clone() for name, value in fixed.state_dict().items()}
    data = cases(120)
    rows = label_efficiency({"a": fixed, "b": encoder}, data, (1.0, 0.25, 0.5), 2, trainer=TRAINER, repeats=0)
    assert len(rows) == 12 and [row["fraction"] for row in rows[:6]] == [0.25, 0.25, 0.5, 0.5, 1.0, 1.0]
    members = [{row.numpy().tobytes() for row in train.images} for _, train, _, _ in recorded]
    for number in range(2):
        own = members[6 * number : 6 * number + 6]
        assert own[0] == own[1] and own[2] == own[3] and own[4] == own[5]
        assert own[0] < own[2] < own[4]
    for (_, train, weights, _), row in zip(recorded, rows):
        assert train.labels.bincount().tolist() == [len(train) // 3] * 3 and row["labels"] == len(train)
        assert train.groups.bincount()[train.groups.unique()].tolist() == [2] * (len(train) // 2)  # whole patients
        if row["method"] == "a":
            assert torch.equal(weights["backbone.backbone.weight"], before["weight"])
    assert torch.equal(recorded[0][2]["head.1.weight"], recorded[1][2]["head.1.weight"])
    assert all(torch.equal(fixed.state_dict()[name], value) for name, value in before.items())  # it was copied
    assert members[0] != members[6]  # another draw


def test_patients_are_kept_apart_by_the_split():
    splits = protocol.split(cases(120), seed=1)
    parts = [set(part.groups.tolist()) for part in (splits.train, splits.validation, splits.test)]
    assert not parts[0] & parts[1] and not parts[0] & parts[2] and not parts[1] & parts[2]
    assert len(splits.train) == 72


def test_the_encoder_is_frozen_then_opened_and_the_best_can_be_kept(recorded):
    label_efficiency({"a": encoder}, cases(), (1.0,), 1, trainer=Trainer(steps=8), frozen=0.5, repeats=0)
    network, _, begun, arguments = recorded[0]
    assert arguments["frozen"] == "backbone" and arguments["frozen_steps"] == 4 and arguments["evaluate"] is None
    assert not torch.equal(network.state_dict()["backbone.backbone.weight"], begun["backbone.backbone.weight"])
    trainer = Trainer(steps=8, select="max", evaluate_every=2)
    label_efficiency({"a": encoder}, cases(), (1.0,), 1, trainer=trainer, frozen=0.5, repeats=0)
    assert recorded[1][3]["evaluate"] is not None
    with pytest.raises(ValueError, match="the splits have none"):
        train, test = cases().split((0.5, 0.5))
        label_efficiency({"a": encoder}, Splits(train, test), (1.0,), 1, trainer=trainer, frozen=0.5, repeats=0)


def test_auc_is_scikit_learns_with_an_interval_around_it(monkeypatch):
    kept = []
    original = protocol.auc
    monkeypatch.setattr(protocol, "auc", lambda p, y: kept.append((p, y)) or original(p, y))
    row = label_efficiency({"a": encoder}, cases(), (1.0,), 1, trainer=TRAINER, repeats=50)[0]
    probabilities, labels = kept[-1]
    assert row["AUC"] == pytest.approx(roc_auc_score(labels.numpy(), probabilities, multi_class="ovr"))
    assert row["low"] <= row["AUC"] <= row["high"] and np.allclose(probabilities.sum(1), 1, atol=1e-5)


def test_summary_robustness_and_picture():
    rows = [
        {"method": m, "fraction": f, "labels": int(100 * f), "seed": s, "AUC": a + 0.1 * s, "low": a, "high": a + 0.2}
        | {"accuracy": a}
        for m, f, a in (("x", 0.1, 0.6), ("x", 1.0, 0.8), ("y", 0.1, 0.3), ("y", 1.0, 0.8))
        for s in (0, 1)
    ]
    table = summary(rows)
    assert [row["AUC"] for row in table] == pytest.approx([0.65, 0.85, 0.35, 0.85])
    assert table[0]["AUC std"] == pytest.approx(0.1 / 2**0.5)
    assert robustness(rows) == pytest.approx({"x": 0.2, "y": 0.5})
    axes = protocol.learning_curves(rows).axes[0]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["x", "y"]
    pandas = pytest.importorskip("pandas", reason="the extra flambeau[tabular] is not installed")
    assert pandas.DataFrame(rows).groupby("method")["AUC"].mean()["x"] == pytest.approx(0.75)


def test_bad_input_is_named():
    data = cases()
    train, test = data[:30], data[30:]
    with pytest.raises(ValueError, match="train and test share 1 groups"):
        Splits(data[:31], data[31:])
    with pytest.raises(ValueError, match="test lacks the class class 2"):
        Splits(train, test[test.labels != 2])
    with pytest.raises(ValueError, match="train lacks the class class 0"):
        Splits(train[train.labels != 0], test)
    with pytest.raises(ValueError, match="train has no labels"):
        Splits(ImageSet(train.images), test)
    with pytest.raises(ValueError, match="dataset has no labels"):
        label_efficiency({"a": encoder}, ImageSet(train.images))
    with pytest.raises(ValueError, match="must not be empty"):
        label_efficiency({}, data)
    with pytest.raises(ValueError, match=r"fractions must lie in \(0, 1\], got 1.5"):
        label_efficiency({"a": encoder}, data, (1.5,), 1)
    with pytest.raises(ValueError, match=r"frozen must lie in \[0, 1\)"):
        label_efficiency({"a": encoder}, data, frozen=1.0)
