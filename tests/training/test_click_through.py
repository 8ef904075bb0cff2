import copy
from functools import partial

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from flambeau.data.clicks.encoded import ClickRows
from flambeau.data.clicks.fields import Field, FieldSchema
from flambeau.data.clicks.planted import planted_clicks
from flambeau.experiment.clicks.metrics import click_metrics, grouped_auc, relative_improvement
from flambeau.models.tabular import DNN, AutoInt, LogisticRegression
from flambeau.training import Trainer
from flambeau.training.click_through import (
    fit_clicks,
    grow_model,
    log_loss,
    negative_offset,
    predict_logits,
    thin_negatives,
)
from flambeau.training.optimizers import LazyAdam


@pytest.fixture(scope="module")
def clicks():
    planted = planted_clicks(12_000, seed=5)
    schema = FieldSchema.fit(planted.columns(slice(0, 8000)), [Field(name) for name in planted.columns()])
    ids, values = schema.encode(planted.columns())
    parts = [slice(0, 8000), slice(8000, 10_000), slice(10_000, None)]
    return schema, [ClickRows(ids[part], values[part], planted.labels[part]) for part in parts]


def trainer(**options):
    adam = partial(torch.optim.Adam, lr=5e-3)
    return Trainer(**{"epochs": 3, "optimizer": adam, "select": "max", "evaluate_every": 10, **options})


def test_learns_and_stops_within_an_epoch(clicks):
    schema, (train, validation, test) = clicks
    torch.manual_seed(0)
    model = DNN(schema)
    fit = fit_clicks(model, train, validation, trainer(epochs=30, patience=6), batch_size=256)
    assert fit.steps < 30 * 31 and fit.steps % 31 and fit.best["step"] == fit.steps - 60
    assert click_metrics(test.labels, predict_logits(model, test.ids, test.values))["auc"] > 0.7
    assert fit.best["auc"] == pytest.approx(
        click_metrics(validation.labels, predict_logits(model, validation.ids, validation.values))["auc"]
    )


def test_the_same_seed_gives_the_same_network(clicks):
    schema, (train, validation, _) = clicks

    def weights(seed):
        torch.manual_seed(0)
        model = AutoInt(schema, width=8, layers=1, dropout=(0.2, 0.1, 0.0))
        fit_clicks(model, train, validation, trainer(epochs=None, steps=6), batch_size=64, seed=seed)
        return torch.cat([parameter.flatten() for parameter in model.parameters()])

    assert torch.equal(weights(1), weights(1)) and not torch.equal(weights(1), weights(2))


def test_thinned_negatives_are_calibrated_by_the_offset(clicks):
    schema, (train, validation, test) = clicks
    torch.manual_seed(0)
    model = LogisticRegression(schema)
    adam = partial(torch.optim.Adam, lr=2e-2)
    fit_clicks(model, train, validation, trainer(epochs=8, optimizer=adam), batch_size=256, keep_negatives=0.2)
    logits = predict_logits(model, test.ids, test.values)
    raw = click_metrics(test.labels, logits)
    assert raw["calibration"] > 1.5
    corrected = click_metrics(test.labels, logits + negative_offset(0.2))
    assert corrected["calibration"] == pytest.approx(1, abs=0.12)
    assert corrected["calibration_error"] < raw["calibration_error"] / 3
    assert corrected["auc"] == raw["auc"]


def test_thinning_keeps_all_clicks(clicks):
    rows = clicks[1][0]
    thin = thin_negatives(rows, 0.25, torch.Generator().manual_seed(0))
    assert thin.labels.sum() == rows.labels.sum()
    assert (thin.labels == 0).sum() / (rows.labels == 0).sum() == pytest.approx(0.25, abs=0.02)
    with pytest.raises(ValueError, match="keep_negatives must lie"):
        thin_negatives(rows, 0.0, torch.Generator())


def one_step(clicks, optimizer, sparse, steps=1):
    schema, (train, _, _) = clicks
    torch.manual_seed(0)
    model = DNN(schema, 4, (8,), sparse=sparse).double()
    update = optimizer(model)
    for step in range(steps):
        update.zero_grad()
        rows = slice(8 * step, 8 * step + 8)
        log_loss(model, ClickRows(train.ids[rows], train.values[rows], train.labels[rows].double())).backward()
        update.step()
    return model.embedding.table.weight.detach(), model.mlp[0].weight.detach()


def test_the_first_lazy_step_is_adams():
    planted = planted_clicks(100)
    schema = FieldSchema.fit(planted.columns(), [Field(name) for name in planted.columns()])
    rows = ClickRows(*schema.encode(planted.columns()), planted.labels)
    case = schema, (rows, rows, rows)
    start = one_step(case, lambda model: torch.optim.SGD(model.parameters(), lr=0.0), False)
    dense = one_step(case, lambda model: torch.optim.Adam(model.parameters(), lr=0.01), False)
    lazy = one_step(case, lambda model: LazyAdam(model.parameters(), lr=0.01), True)
    for before, adam, ours in zip(start, dense, lazy):
        torch.testing.assert_close(ours, adam, rtol=0, atol=1e-9)
        assert not torch.equal(before, ours)
    untouched = torch.ones(len(start[0]), dtype=torch.bool)
    untouched[rows.ids[:8].unique()] = False
    assert torch.equal(start[0][untouched], lazy[0][untouched]) and untouched.any()


def test_lazy_adam_is_torchs_sparse_adam_and_adam():
    planted = planted_clicks(100)
    schema = FieldSchema.fit(planted.columns(), [Field(name) for name in planted.columns()])
    rows = ClickRows(*schema.encode(planted.columns()), planted.labels)
    case = schema, (rows, rows, rows)

    class Both:
        def __init__(self, model):
            tables = [p for name, p in model.named_parameters() if "table" in name]
            others = [p for name, p in model.named_parameters() if "table" not in name]
            self.parts = (
                torch.optim.SparseAdam(tables, lr=0.01, eps=1e-16),
                torch.optim.Adam(others, lr=0.01, eps=1e-16),
            )

        def __getattr__(self, name):
            return lambda: [getattr(part, name)() for part in self.parts]

    theirs = one_step(case, Both, True, steps=5)
    # SparseAdam does not correct eps for the bias of the second moment as Adam does, so it is made negligible.
    ours = one_step(case, lambda model: LazyAdam(model.parameters(), lr=0.01, eps=1e-16), True, steps=5)
    for one, other in zip(ours, theirs):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-9)
    with pytest.raises(ValueError, match="betas"):
        LazyAdam([torch.zeros(1)], betas=(1.0, 0.9))


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, LazyAdam])
def test_a_grown_model_predicts_the_same_and_trains_on(clicks, optimizer):
    schema, (train, _, _) = clicks
    torch.manual_seed(0)
    model = AutoInt(schema, width=8, layers=1, sparse=optimizer is LazyAdam)
    update = optimizer(model.parameters(), lr=0.01)
    log_loss(model, ClickRows(*[tensor[:64] for tensor in train])).backward()
    update.step()
    before = predict_logits(model, train.ids[:50], train.values[:50])
    moments = copy.deepcopy(update.state[model.embedding.table.weight])
    news = {name: ["20", "21"] for name in (one.name for one in schema.fields)}
    grown = schema.grow(news)
    assert grown.rows == schema.rows + 20
    unseen = model(*schema.encode(news))
    grow_model(model, grown, update)
    assert torch.equal(predict_logits(model, train.ids[:50], train.values[:50]), before)
    torch.testing.assert_close(model(*grown.encode(news)), unseen)
    table = model.embedding.table.weight
    assert len(table) == grown.rows and update.state[table]["exp_avg"].shape == table.shape
    assert torch.equal(update.state[table]["exp_avg"][: schema.rows], moments["exp_avg"])
    assert not update.state[table]["exp_avg_sq"][schema.rows :].any()
    held = table.detach().clone()
    update.zero_grad()
    log_loss(model, ClickRows(*grown.encode(news), torch.tensor([1.0, 0.0]))).backward()
    update.step()
    assert (model.embedding.table.weight[schema.rows :] != held[schema.rows :]).any()
    with pytest.raises(ValueError, match="expected at least"):
        grow_model(model, schema)


def test_bad_labels_are_named(clicks):
    schema, (train, validation, _) = clicks
    bad = train._replace(labels=train.labels.clone().index_fill_(0, torch.tensor([3]), float("nan")))
    with pytest.raises(ValueError, match="train: labels must be 0 or 1, got nan"):
        fit_clicks(DNN(schema), bad, validation, trainer())
    with pytest.raises(ValueError, match="validation: expected rows with and without a click"):
        fit_clicks(DNN(schema), train, validation._replace(labels=torch.zeros(2000)), trainer())


def test_metrics_against_their_definitions():
    labels, logits = np.array([0, 0, 1, 1, 0]), np.array([-1.0, 0.5, 0.5, 2.0, 3.0])
    found = click_metrics(labels, logits)
    probability = 1 / (1 + np.exp(-logits))
    assert found["auc"] == roc_auc_score(labels, logits) == pytest.approx(3.5 / 6)
    assert found["log_loss"] == pytest.approx(
        -np.mean(labels * np.log(probability) + (1 - labels) * np.log(1 - probability))
    )
    assert found["calibration"] == pytest.approx(probability.sum() / 2)
    assert relative_improvement(0.8, 0.7) == pytest.approx(50)
    groups = ["a", "a", "a", "b", "b"]
    assert grouped_auc(labels, logits, groups) == pytest.approx((3 * 0.75 + 2 * 0.0) / 5)
    assert click_metrics([0, 1], [-1e4, 1e4])["log_loss"] == 0  # no overflow
    for call in (
        lambda: click_metrics([0, 0], [1, 2]),
        lambda: click_metrics([0, 1], [1]),
        lambda: relative_improvement(0.7, 0.5),
        lambda: grouped_auc([0, 1], [1, 2], ["a", "b"]),
    ):
        with pytest.raises(ValueError):
            call()
