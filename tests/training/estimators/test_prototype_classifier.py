import pickle

import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer, load_iris, load_wine
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import train_test_split
from sklearn.utils.estimator_checks import parametrize_with_checks

from flambeau.training.estimators.prototype_classifier import PrototypeClassifier


@parametrize_with_checks([PrototypeClassifier(n_prototypes=6, steps=60, random_state=0)])
@pytest.mark.filterwarnings("ignore:num_prototypes")
def test_scikit_learn_checks(estimator, check):
    check(estimator)


@pytest.mark.parametrize(("load", "floor"), [(load_iris, 0.9), (load_wine, 0.9), (load_breast_cancer, 0.93)])
def test_tables(load, floor):
    data = load()
    split = train_test_split(data.data, data.target, test_size=0.3, random_state=0, stratify=data.target)
    train_x, test_x, train_y, test_y = split
    fitted = PrototypeClassifier(steps=300, random_state=0).fit(train_x, train_y)
    assert fitted.score(test_x, test_y) >= floor
    # Prototypes are in the table's units: within the table, each near rows of a class, and those classes differ.
    margin = 0.5 * np.ptp(train_x, axis=0)
    assert (fitted.prototypes_ >= train_x.min(0) - margin).all()
    assert (fitted.prototypes_ <= train_x.max(0) + margin).all()
    assert set(train_y[fitted.prototype_rows_]) == set(train_y)
    nearest = train_x[fitted.prototype_rows_]
    apart = np.abs(fitted.prototypes_ - nearest) / train_x.std(0)
    assert apart.mean() < np.abs(train_x - train_x.mean(0)).mean() / train_x.std(0).mean()


def test_string_labels_constant_columns_and_pickling():
    x, y = load_iris(return_X_y=True)
    x = np.column_stack([x, np.full(len(x), 3.7)])
    names = np.array(["setosa", "versicolor", "virginica"])[y]
    fitted = PrototypeClassifier(steps=100, random_state=1).fit(x, names)
    assert set(fitted.predict(x)) <= set(names)
    np.testing.assert_allclose(fitted.predict_proba(x).sum(1), 1)
    again = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(again.predict_proba(x), fitted.predict_proba(x))
    same = PrototypeClassifier(steps=100, random_state=1).fit(x, names)
    np.testing.assert_array_equal(same.predict_proba(x), fitted.predict_proba(x))


def test_bad_input():
    x, y = load_iris(return_X_y=True)
    with pytest.raises(ValueError, match="1 class"):
        PrototypeClassifier().fit(x, np.zeros(len(x)))
    with pytest.raises(ValueError, match="NaN"):
        PrototypeClassifier().fit(np.where(x > 7, np.nan, x), y)
    with pytest.raises(ValueError, match="num_prototypes: got 2 for 3"):
        PrototypeClassifier(2, w_mode="fixed_class").fit(x, y)
    with pytest.raises(ValueError, match="init"):
        PrototypeClassifier(init="zeros").fit(x, y)
    with pytest.raises(NotFittedError):
        PrototypeClassifier().predict(x)
