"""How good a representation is: a linear probe, nearest neighbours, and few labels a class."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

STRENGTHS = (0.001, 0.01, 0.1, 1.0, 10.0)


@torch.no_grad()
def features(
    encoder: nn.Module | Callable[[Tensor], Tensor], images: Tensor, batch_size: int = 256
) -> Float[Tensor, "n dim"]:
    """``encoder(images)``, flattened, on the CPU; a module is put into evaluation mode meanwhile."""
    training = isinstance(encoder, nn.Module) and encoder.training
    device = next(encoder.parameters()).device if isinstance(encoder, nn.Module) else images.device
    if isinstance(encoder, nn.Module):
        encoder.eval()
    found = torch.cat([encoder(part.to(device)).flatten(1).float().cpu() for part in images.split(batch_size)])
    if isinstance(encoder, nn.Module):
        encoder.train(training)
    return found


def linear_probe(
    train_x: Float[Tensor, "n dim"], train_y: Int64[Tensor, " n"], test_x: Float[Tensor, "m dim"], seed: int = 0
) -> Float[np.ndarray, "m classes"]:
    """Class probabilities of a logistic regression on standardised features.

    Its strength of regularisation is chosen by cross-validation within the training part, so that a comparison of
    representations does not depend on one that suits one of them.

    Raises:
        ValueError: features that are not finite, or a training part of one class.
    """
    for name, values in (("train_x", train_x), ("test_x", test_x)):
        if not torch.isfinite(values).all():
            raise ValueError(f"{name} holds values that are not finite")
    x, y = train_x.numpy(), train_y.numpy()
    fewest = int(np.bincount(y)[np.unique(y)].min())
    if len(np.unique(y)) < 2:
        raise ValueError("train_y has one class only")

    def model(strength: float) -> Any:
        return make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=1000))

    best = 0.1
    if fewest >= 2:
        folds = StratifiedKFold(min(5, fewest), shuffle=True, random_state=seed)
        best = max(STRENGTHS, key=lambda strength: cross_val_score(model(strength), x, y, cv=folds).mean())
    return model(best).fit(x, y).predict_proba(test_x.numpy())


def nearest_neighbours(
    train_x: Float[Tensor, "n dim"],
    train_y: Int64[Tensor, " n"],
    test_x: Float[Tensor, "m dim"],
    neighbours: int = 20,
    temperature: float = 0.07,
) -> Float[np.ndarray, "m classes"]:
    """Shares of the votes of the nearest training cases by cosine similarity s, weighted exp(s / temperature).

    The protocol of Wu et al. 2018 (arXiv 1805.01978, section 3.4), with fewer neighbours where there are fewer cases.
    """
    count = min(neighbours, len(train_x))
    model = KNeighborsClassifier(
        count, metric="cosine", algorithm="brute", weights=lambda distance: np.exp((1 - distance) / temperature)
    )
    return model.fit(train_x.numpy(), train_y.numpy()).predict_proba(test_x.numpy())


def accuracy(probabilities: Float[np.ndarray, "m classes"], labels: Int64[Tensor, " m"]) -> float:
    """Share of cases whose likeliest class is their own; columns are the classes in order."""
    return float((probabilities.argmax(1) == labels.numpy()).mean())


def auc(probabilities: Float[np.ndarray, "m classes"], labels: Int64[Tensor, " m"]) -> float:
    """Area under the ROC curve; with more than two classes the mean over one-versus-rest."""
    scores = probabilities[:, 1] if probabilities.shape[1] == 2 else probabilities
    return float(roc_auc_score(labels.numpy(), scores, multi_class="ovr", average="macro"))


def bootstrap_interval(
    statistic: Callable[[np.ndarray, Tensor], float],
    probabilities: Float[np.ndarray, "m classes"],
    labels: Int64[Tensor, " m"],
    *,
    repeats: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile interval of `statistic` over test sets drawn with replacement; draws that lack a class are redrawn."""
    random = np.random.default_rng(seed)
    classes = len(labels.unique())
    values: list[float] = []
    for _ in range(20 * repeats):
        rows = random.integers(0, len(labels), len(labels))
        if len(labels[rows].unique()) == classes:
            values.append(statistic(probabilities[rows], labels[rows]))
        if len(values) == repeats:
            break
    else:
        raise ValueError(f"a class is too rare among {len(labels)} test cases to be drawn in most samples")
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
