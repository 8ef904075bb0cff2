import pickle

import numpy as np
import pytest
from sklearn.exceptions import NotFittedError
from sklearn.metrics import roc_auc_score
from sklearn.utils.estimator_checks import parametrize_with_checks

from flambeau.data.clicks.fields import Field
from flambeau.experiment.clicks.models import binned_breast_cancer_auc
from flambeau.training.estimators.autoint_classifier import AutoIntClassifier

SMALL = dict(dim=4, layers=1, width=8, epochs=3, random_state=0)


def people(rows=600, seed=0):
    pandas = pytest.importorskip("pandas", reason="the extra flambeau[tabular] is not installed")
    rng = np.random.default_rng(seed)
    frame = pandas.DataFrame(
        {
            "city": rng.choice(["Oslo", "Rome", None], rows),
            "age": rng.normal(40, 10, rows),
            "tags": [list(rng.choice(["a", "b", "c"], rng.integers(3), replace=False)) for _ in range(rows)],
            "device": rng.integers(0, 4, rows),
        }
    )
    frame.loc[::17, "age"] = np.nan
    score = 2 * (frame["city"] == "Rome") * (frame["device"] == 2) + 0.05 * (frame["age"].fillna(40) - 40)
    return frame, np.where(score + rng.normal(0, 0.3, rows) > 0.4, "bought", "left")


QUICK = AutoIntClassifier(
    dim=4, layers=1, heads=1, width=8, epochs=30, batch_size=16, learning_rate=0.02, random_state=0
)
INEXACT = {"check_methods_subset_invariance": "float32 products differ in the last bit between sizes of a batch"}


@parametrize_with_checks([QUICK], expected_failed_checks=lambda estimator: INEXACT)
def test_scikit_learn_checks(estimator, check):
    check(estimator)


def test_binned_breast_cancer():
    model = AutoIntClassifier(layers=2, width=16, batch_size=64)
    assert np.mean([binned_breast_cancer_auc(model, seed) for seed in range(2)]) >= 0.98


def test_frames_with_categories_numbers_and_sets():
    frame, label = people()
    model = AutoIntClassifier(dim=8, layers=2, width=16, epochs=15, learning_rate=0.01, random_state=0)
    model.set_params(fields=["city", "age", Field("tags", "set", members=3), Field("device")])
    model.fit(frame, label, eval_set=people(200, seed=1))
    test, truth = people(300, seed=2)
    probability = model.predict_proba(test)
    assert list(model.classes_) == ["bought", "left"] and probability.shape == (300, 2)
    np.testing.assert_allclose(probability.sum(1), 1)
    assert roc_auc_score(truth == "left", probability[:, 1]) > 0.9
    assert [one.kind for one in model.schema_.fields] == ["categorical", "numeric", "set", "categorical"]
    test.loc[0, "city"] = "Atlantis"  # never seen: treated as a rare one
    assert np.isfinite(model.predict_proba(test)).all()
    restored = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(restored.predict(test), model.predict(test))


def test_explanation_is_a_labelled_matrix_with_a_warning():
    frame, label = people(300)
    model = AutoIntClassifier(**SMALL, categorical=["device"]).fit(frame, label)
    table = model.explain(frame)
    assert list(table.index) == list(table.columns) == ["city", "age", "tags", "device"]
    np.testing.assert_allclose(table.sum(axis=1), 1, rtol=1e-5)
    assert "not what its prediction depends on" in table.attrs["note"] and -1 <= table.attrs["agreement"] <= 1
    importance = table.attrs["pair_importance"]
    np.testing.assert_array_equal(importance, importance.T)


def test_thinned_negatives_give_calibrated_probabilities():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4000, 2))
    y = rng.random(4000) < 1 / (1 + np.exp(2 - x[:, 0]))
    model = AutoIntClassifier(**{**SMALL, "epochs": 8}, keep_negatives=0.3, sparse=True).fit(x, y)
    assert model.predict_proba(x)[:, 1].mean() == pytest.approx(y.mean(), abs=0.05)


def test_bad_use_is_said_clearly():
    frame, label = people(100)
    with pytest.raises(ValueError, match=r"label is missing \(NaN\)"):
        AutoIntClassifier(**SMALL).fit(frame, [float("nan")] + [1.0] * 99)
    with pytest.raises(ValueError, match="no column 'town'"):
        AutoIntClassifier(**SMALL, categorical=["town"]).fit(frame, label)
    with pytest.raises(ValueError, match="width must be divisible by heads"):
        AutoIntClassifier(**{**SMALL, "heads": 3}).fit(frame, label)
    with pytest.raises(ValueError, match="no column 'city'"):
        AutoIntClassifier(**SMALL).fit(frame, label).predict(frame.drop(columns="city"))
    with pytest.raises(NotFittedError):
        AutoIntClassifier().predict(frame)
