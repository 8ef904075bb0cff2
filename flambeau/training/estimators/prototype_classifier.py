"""The prototype net as a scikit-learn classifier for tables, with prototypes in the units of the table."""

from collections.abc import Sequence
from functools import partial
from typing import Literal

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from flambeau.data import Batches
from flambeau.models.prototype_net import PrototypeNet
from flambeau.models.tabular.autoencoder import MLPDecoder, MLPEncoder
from flambeau.objectives.prototype import PrototypeLoss
from flambeau.training.prototypes import fit_prototypes
from flambeau.training.trainer import Trainer


class PrototypeClassifier(ClassifierMixin, BaseEstimator):
    """Case-based classifier for numeric tables (Li et al., AAAI 2018, with a multilayer perceptron as autoencoder).

    Columns are standardised inside; ``prototypes_`` are rows in the original units.

    Args:
        n_prototypes: at most one for each training row.
        hidden: widths of the encoder's hidden layers; the decoder mirrors them.
        latent_dim: length of a code.
        steps: optimiser steps.
        batch_size: rows in a step, at most all.
        learning_rate: of Adam.
        cls, ae, r1, r2: weights of the loss, see :class:`~flambeau.objectives.prototype.PrototypeLoss`.
        w_mode: ``"free"`` or ``"fixed_class"``.
        init: ``"kmeans"`` or ``"uniform"``, see :func:`~flambeau.training.prototypes.fit_prototypes`.
        random_state: integer, ``RandomState`` or None.

    Attributes:
        classes_: [classes] labels.
        prototypes_: [prototypes, features] decoded prototypes, in original units.
        prototype_rows_: [prototypes] index of the training row nearest to each prototype in latent space.
        net_: the fitted :class:`~flambeau.models.prototype_net.PrototypeNet`; it takes standardised rows
            (``standardise``).

    Raises:
        ValueError: in ``fit``, fewer than two classes or rows, values that are not finite, continuous labels.
    """

    def __init__(
        self,
        n_prototypes: int = 15,
        *,
        hidden: Sequence[int] = (16,),
        latent_dim: int = 8,
        steps: int = 600,
        batch_size: int = 128,
        learning_rate: float = 0.01,
        cls: float = 20.0,
        ae: float = 1.0,
        r1: float = 1.0,
        r2: float = 1.0,
        w_mode: str = "free",
        init: Literal["kmeans", "uniform"] = "kmeans",
        random_state: int | np.random.RandomState | None = None,
    ):
        self.n_prototypes = n_prototypes
        self.hidden = hidden
        self.latent_dim = latent_dim
        self.steps = steps
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.cls = cls
        self.ae = ae
        self.r1 = r1
        self.r2 = r2
        self.w_mode = w_mode
        self.init = init
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: ArrayLike) -> "PrototypeClassifier":
        """Fit to rows X [n, features] and labels y [n]."""
        table, target = validate_data(self, X, y, dtype=np.float64, ensure_min_samples=2)
        check_classification_targets(target)
        self.classes_, labels = np.unique(target, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"y: got {len(self.classes_)} class, expected at least 2 classes")
        self.mean_, scale = table.mean(0), table.std(0)
        self.scale_ = np.where(scale > 1e-12 * np.maximum(1, np.abs(self.mean_)), scale, 1.0)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        shape = (table.shape[1], tuple(self.hidden), self.latent_dim)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.net_ = PrototypeNet(
                MLPEncoder(*shape),
                MLPDecoder(*shape),
                len(self.classes_),
                min(self.n_prototypes, len(table)),
                w_mode=self.w_mode,
            )
        rows = (self.standardise(table), torch.from_numpy(labels.astype(np.int64)))
        trainer = Trainer(steps=self.steps, optimizer=partial(torch.optim.Adam, lr=self.learning_rate))
        loss = PrototypeLoss(self.cls, self.ae, self.r1, self.r2)
        data = Batches(rows, min(self.batch_size, len(table)))
        fit_prototypes(self.net_, loss, data, trainer, init=self.init, seed=seed)
        self.prototypes_ = self.net_.decode_prototypes().double().numpy() * self.scale_ + self.mean_
        self.prototype_rows_ = self.net_.training_index.numpy().copy()
        return self

    def predict_proba(self, X: ArrayLike) -> np.ndarray:
        """Probability of each class, [n, classes]."""
        check_is_fitted(self)
        table = validate_data(self, X, dtype=np.float64, reset=False)
        with torch.no_grad():
            logits = self.net_.classify(self.standardise(table))[0]
        return logits.double().softmax(1).numpy()

    def predict(self, X: ArrayLike) -> np.ndarray:
        """The most probable class of each row, [n]."""
        best = self.predict_proba(X).argmax(1)
        return self.classes_[best]

    def standardise(self, X: ArrayLike) -> torch.Tensor:
        """Rows as ``net_`` takes them, float32."""
        return torch.from_numpy((np.asarray(X, np.float64) - self.mean_) / self.scale_).float()
