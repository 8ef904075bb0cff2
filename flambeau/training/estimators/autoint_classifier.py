"""AutoInt as a scikit-learn classifier for tables of categories, numbers and sets."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from scipy.sparse import issparse
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, column_or_1d, validate_data

from flambeau.data.clicks.encoded import ClickRows
from flambeau.data.clicks.fields import Field, FieldSchema
from flambeau.data.seeding import derive_generator
from flambeau.models.tabular.autoint import AutoInt
from flambeau.models.tabular.explanation import ATTENTION_NOTE, agreement, mean_attention, pair_importance
from flambeau.training.click_through import fit_clicks, negative_offset, predict_logits
from flambeau.training.optimizers import LazyAdam
from flambeau.training.trainer import Trainer


class AutoIntClassifier(ClassifierMixin, BaseEstimator):
    """Two classes from mixed columns with AutoInt (Song et al., CIKM 2019).

    ``X`` is a pandas DataFrame, a mapping of columns, or an array of numbers. Text columns are categories, columns of
    lists are sets, numbers are numbers; a missing cell is no error. Categories that were not seen in ``fit`` count as
    rare ones when predicting.

    Args:
        dim, layers, heads, width, residual, variant, mlp, dropout: see :class:`~flambeau.models.tabular.AutoInt`.
        fields: columns to use, each a name or a :class:`~flambeau.data.clicks.fields.Field`; all if None.
        categorical: columns that are categories although they hold numbers.
        min_count: categories seen less often share an embedding; for columns without a ``Field``.
        epochs: at most.
        batch_size: rows a step, at most all.
        learning_rate: of Adam.
        sparse: update only the embeddings of the rows at hand.
        keep_negatives: share of the rows of the first class that are kept; probabilities are corrected for it.
        patience: training stops after so many evaluations without a lower log-loss; there are four an epoch, or one
            every 20 steps.
        validation_fraction: held out to stop by if ``fit`` gets no ``eval_set``.
        random_state: integer, ``RandomState`` or None.

    Attributes:
        classes_: the two labels; the second is a click.
        schema_: the fitted :class:`~flambeau.data.clicks.fields.FieldSchema`.
        model_: the fitted network.
        best_: values of the evaluation that was kept.

    Raises:
        ValueError: in ``fit``, labels that are missing or not of two classes; later, a missing column.
    """

    def __init__(
        self,
        *,
        dim: int = 16,
        layers: int = 3,
        heads: int = 2,
        width: int = 64,
        residual: bool = True,
        variant: Literal["paper", "repo"] = "repo",
        mlp: Sequence[int] | None = None,
        dropout: tuple[float, float, float] = (0.0, 0.0, 0.0),
        fields: Sequence[Field | str] | None = None,
        categorical: Sequence[str] = (),
        min_count: int = 1,
        epochs: int = 50,
        batch_size: int = 256,
        learning_rate: float = 2e-3,
        sparse: bool = False,
        keep_negatives: float = 1.0,
        patience: int = 8,
        validation_fraction: float = 0.1,
        random_state: int | np.random.RandomState | None = None,
    ):
        self.dim = dim
        self.layers = layers
        self.heads = heads
        self.width = width
        self.residual = residual
        self.variant = variant
        self.mlp = mlp
        self.dropout = dropout
        self.fields = fields
        self.categorical = categorical
        self.min_count = min_count
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.sparse = sparse
        self.keep_negatives = keep_negatives
        self.patience = patience
        self.validation_fraction = validation_fraction
        self.random_state = random_state

    def fit(self, X: Any, y: Any, eval_set: tuple[Any, Any] | None = None) -> AutoIntClassifier:
        """Fit to rows X and labels y; `eval_set` is ``(X, y)`` to stop by."""
        if issparse(X):
            raise TypeError("X is a sparse matrix, which AutoInt does not take; give columns or a DataFrame")
        columns = self._columns(X, fitting=True)
        target = column_or_1d(y, warn=True)
        if len(target) != len(next(iter(columns.values()))):
            raise ValueError(f"X and y must have equally many rows, got inconsistent numbers of samples: {len(target)}")
        if any(label is None or label != label for label in target.tolist()):
            raise ValueError("y: a label is missing (NaN)")
        check_classification_targets(target)
        self.classes_ = np.unique(target)
        if len(self.classes_) != 2:
            told = "Only binary classification is supported. " if len(self.classes_) > 2 else ""
            raise ValueError(f"{told}y: expected two classes, got {len(self.classes_)} class(es)")
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        labels = self._labels(target)
        rows = np.arange(len(labels))
        if eval_set is None:
            rows, held = _held_out(labels, self.validation_fraction, seed)
        fields = self.fields
        if fields is None:
            first = FieldSchema.fit(_rows(columns, rows)).fields
            fields = [
                Field(one.name, "categorical" if one.name in self.categorical else one.kind, min_count=self.min_count)
                for one in first
            ]
        unknown = [name for name in self.categorical if name not in columns]
        if unknown:
            raise ValueError(f"categorical: no column {unknown[0]!r}; there are {', '.join(columns)}")
        self.schema_ = FieldSchema.fit(_rows(columns, rows), fields)
        train = ClickRows(*self.schema_.encode(_rows(columns, rows)), labels[rows])
        if eval_set is None:
            validation = ClickRows(*self.schema_.encode(_rows(columns, held)), labels[held])
        else:
            given, wanted = self._columns(eval_set[0]), column_or_1d(eval_set[1])
            validation = ClickRows(*self.schema_.encode(given), self._labels(wanted))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model_ = AutoInt(
                self.schema_, self.dim, self.layers, self.heads, self.width, residual=self.residual,
                variant=self.variant, mlp=self.mlp, dropout=self.dropout, sparse=self.sparse,
            )  # fmt: skip
        steps = max(1, len(train.labels) // min(self.batch_size, len(train.labels)))
        adam = LazyAdam if self.sparse else torch.optim.Adam
        trainer = Trainer(
            epochs=self.epochs, optimizer=partial(adam, lr=self.learning_rate), select="min",
            evaluate_every=max(20, steps // 4), patience=self.patience,
        )  # fmt: skip
        fit = fit_clicks(
            self.model_, train, validation, trainer,
            batch_size=self.batch_size, keep_negatives=self.keep_negatives, seed=seed,
        )  # fmt: skip
        self.best_ = fit.best
        return self

    def decision_function(self, X: Any) -> np.ndarray:
        """Logits of the second class, [n]."""
        check_is_fitted(self)
        logits = predict_logits(self.model_, *self.schema_.encode(self._columns(X)))
        return logits.double().numpy() + negative_offset(self.keep_negatives)

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probability of each class, [n, 2]."""
        click = 0.5 * (1 + np.tanh(0.5 * self.decision_function(X)))
        return np.stack([1 - click, click], 1)

    def predict(self, X: Any) -> np.ndarray:
        """The more probable class of each row, [n]."""
        click = (self.decision_function(X) > 0).astype(int)
        return self.classes_[click]

    def explain(self, X: Any, *, layer: int = 0, rows: int = 512) -> Any:
        """Attention of a layer between fields, averaged over rows and heads, as a DataFrame field x field.

        Its ``attrs`` hold a ``note`` on what attention is not, ``pair_importance`` (a DataFrame, measured by
        intervention on the first `rows` rows), and their rank ``agreement``.
        """
        try:
            import pandas
        except ModuleNotFoundError:
            raise ModuleNotFoundError("explain needs pandas: pip install 'flambeau[tabular]'", name="pandas") from None
        check_is_fitted(self)
        ids, values = self.schema_.encode(self._columns(X))
        attention = mean_attention(self.model_, ids, values, layer=layer)
        predict = partial(predict_logits, self.model_)
        generator = derive_generator(0, "explain")
        importance = pair_importance(predict, ids[:rows], values[:rows], self.schema_.slots, generator=generator)
        names = [one.name for one in self.schema_.fields]
        table = pandas.DataFrame(attention.numpy(), names, names)
        table.attrs["note"] = ATTENTION_NOTE
        table.attrs["pair_importance"] = pandas.DataFrame(importance.numpy(), names, names)
        table.attrs["agreement"] = agreement(attention, importance)
        return table

    def _columns(self, X: Any, fitting: bool = False) -> dict[str, Any]:
        if hasattr(X, "columns") and hasattr(X, "keys"):
            if fitting:
                self.feature_names_in_ = np.array([str(name) for name in X.columns], object)
                self.n_features_in_ = len(X.columns)
            columns = {str(name): X[name] for name in X.columns}
        elif isinstance(X, dict):
            columns = {str(name): cells for name, cells in X.items()}
        else:
            array = validate_data(self, X, dtype=np.float64, ensure_all_finite="allow-nan", reset=fitting)
            return {f"x{position}": column for position, column in enumerate(array.T)}
        if not columns or not len(next(iter(columns.values()))):
            raise ValueError(f"X: no rows or columns, got {len(columns)} columns")
        return columns

    def _labels(self, target: np.ndarray) -> torch.Tensor:
        strange = ~np.isin(target, self.classes_)
        if strange.any():
            raise ValueError(f"labels must be of {self.classes_.tolist()}, got {target[strange][0]!r}")
        return torch.from_numpy((target == self.classes_[1]).astype(np.float32))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_class = False
        tags.input_tags.allow_nan = True
        return tags


def _held_out(labels: torch.Tensor, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train on and rows to stop by, at least one of each label in both."""
    rng = np.random.default_rng(seed)
    held = []
    for label in (0, 1):
        rows = rng.permutation(np.flatnonzero(labels.numpy() == label))
        if len(rows) < 2:
            raise ValueError(f"y: {len(rows)} sample of one class are too few to hold one out; give eval_set")
        held.append(rows[: max(1, round(fraction * len(rows)))])
    validation = np.sort(np.concatenate(held))
    return np.setdiff1d(np.arange(len(labels)), validation), validation


def _rows(columns: dict[str, Any], rows: np.ndarray) -> dict[str, Any]:
    taken = {}
    for name, cells in columns.items():
        if hasattr(cells, "iloc"):
            taken[name] = cells.iloc[rows]
        elif isinstance(cells, np.ndarray):
            taken[name] = cells[rows]
        else:
            taken[name] = [cells[row] for row in rows.tolist()]
    return taken
