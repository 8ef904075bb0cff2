"""How good click probabilities are: ranking, likelihood and calibration."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from sklearn.metrics import roc_auc_score


def click_metrics(labels: ArrayLike, logits: ArrayLike) -> dict[str, float]:
    """AUC, log-loss and calibration of predicted logits.

    Args:
        labels: 0 or 1, [rows].
        logits: [rows].

    Returns:
        ``auc``; ``log_loss`` in nats; ``calibration``, predicted over observed clicks (1 is best);
        ``calibration_error``, the mean distance of predicted from observed rates over 20 bins of equal size.

    Raises:
        ValueError: labels of one kind only, or other than 0 and 1, or lengths that differ.
    """
    y, z = np.asarray(labels, np.float64), np.asarray(logits, np.float64)
    if y.shape != z.shape or y.ndim != 1:
        raise ValueError(f"labels and logits must be [rows], got {y.shape} and {z.shape}")
    if set(np.unique(y)) != {0.0, 1.0}:
        raise ValueError(f"labels must be 0 and 1 and of both kinds, got {np.unique(y)[:5].tolist()}")
    probability = 0.5 * (1 + np.tanh(0.5 * z))
    bins = np.array_split(np.argsort(z, kind="stable"), min(20, len(z)))
    error = sum(abs(probability[rows].mean() - y[rows].mean()) * len(rows) for rows in bins) / len(z)
    return {
        "auc": float(roc_auc_score(y, z)),
        "log_loss": float(np.mean(np.logaddexp(0, z) - y * z)),
        "calibration": float(probability.sum() / y.sum()),
        "calibration_error": float(error),
    }


def relative_improvement(auc: float, baseline: float) -> float:
    """RelaImpr in percent: how much further from the 0.5 of guessing an AUC is (Yan et al. 2014).

    Raises:
        ValueError: a baseline that only guesses.
    """
    if baseline == 0.5:
        raise ValueError("baseline has an AUC of 0.5, so nothing can be relative to it")
    return 100 * ((auc - 0.5) / (baseline - 0.5) - 1)


def grouped_auc(labels: ArrayLike, logits: ArrayLike, groups: Sequence | np.ndarray) -> float:
    """AUC within each group (a user, a session), averaged by rows; groups of one label only are left out.

    Raises:
        ValueError: no group has both labels, or lengths that differ.
    """
    y, z = np.asarray(labels), np.asarray(logits)
    _, group = np.unique(np.asarray(groups), return_inverse=True)
    if not len(y) == len(z) == len(group):
        raise ValueError(f"labels, logits and groups must be of one length, got {len(y)}, {len(z)} and {len(group)}")
    order = np.argsort(group, kind="stable")
    parts = [part for part in np.split(order, np.cumsum(np.bincount(group))[:-1]) if 0 < y[part].mean() < 1]
    if not parts:
        raise ValueError("no group has rows with and without a click")
    return float(np.average([roc_auc_score(y[part], z[part]) for part in parts], weights=[len(p) for p in parts]))
