"""Methods with scikit-learn's interface: fit on a table, predict, save."""

from flambeau.training.estimators.autoint_classifier import AutoIntClassifier
from flambeau.training.estimators.forecaster import Forecaster
from flambeau.training.estimators.prototype_classifier import PrototypeClassifier

__all__ = [
    "AutoIntClassifier",
    "Forecaster",
    "PrototypeClassifier",
]
