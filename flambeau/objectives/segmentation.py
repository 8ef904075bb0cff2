"""Losses and metrics of dense labels that look only at valid pixels."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F


def masked_cross_entropy(
    logits: Float[Tensor, "batch classes height width"],
    mask: Int[Tensor, "batch height width"],
    valid: Bool[Tensor, "batch height width"],
    *,
    weight: Float[Tensor, " classes"] | None = None,
    ignore_index: int | None = None,
    gamma: float = 0.0,
) -> Float[Tensor, ""]:
    """Mean cross-entropy over the valid pixels, 0 when there are none.

    weight: of each class; the mean is then a weighted one. ignore_index: a label that counts as invalid. gamma: above
    0, the focal loss of Lin et al. 2017 (arXiv 1708.02002): each pixel times (1 - p)^gamma.

    Raises:
        ValueError: shapes that do not fit, or a label at a valid pixel that is no class.
    """
    kept = _kept(logits, mask, valid, ignore_index)
    labels = torch.where(kept, mask, torch.zeros_like(mask))
    log_p = -F.cross_entropy(logits, labels, reduction="none")
    loss = -log_p if gamma == 0 else -log_p * (1 - log_p.exp()).clamp_min(0) ** gamma
    each = kept.to(loss.dtype) if weight is None else kept * weight.to(loss)[labels]
    return (loss * each).sum() / each.sum().clamp_min(torch.finfo(loss.dtype).tiny)


def masked_jaccard(
    logits: Float[Tensor, "batch classes height width"],
    mask: Int[Tensor, "batch height width"],
    valid: Bool[Tensor, "batch height width"],
    *,
    ignore_index: int | None = None,
) -> Float[Tensor, ""]:
    """One less the soft intersection over union, over the valid pixels, mean of the classes that occur there.

    Raises:
        ValueError: as :func:`masked_cross_entropy`.
    """
    kept = _kept(logits, mask, valid, ignore_index)
    p = logits.softmax(1) * kept.unsqueeze(1)
    true = F.one_hot(torch.where(kept, mask, torch.zeros_like(mask)), logits.shape[1]).permute(0, 3, 1, 2)
    true = true * kept.unsqueeze(1)
    shared = (p * true).sum((0, 2, 3))
    united = (p + true - p * true).sum((0, 2, 3))
    occurs = true.sum((0, 2, 3)) > 0
    score = shared / united.clamp_min(1e-12)
    return 1 - (score * occurs).sum() / occurs.sum().clamp_min(1) - (~occurs.any()).to(score)


def confusion_matrix(
    predicted: Int[Tensor, "*pixels"], mask: Int[Tensor, "*pixels"], valid: Bool[Tensor, "*pixels"], classes: int
) -> Int[Tensor, "classes classes"]:
    """Valid pixels by true class (rows) and predicted class (columns); matrices of batches add up.

    Raises:
        ValueError: a label outside [0, classes).
    """
    true, said = mask[valid], predicted[valid]
    for name, labels in (("mask", true), ("predicted", said)):
        if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
            raise ValueError(f"{name} must lie in [0, {classes}), got {int(labels.min())} to {int(labels.max())}")
    return torch.bincount(true * classes + said, minlength=classes * classes).reshape(classes, classes)


def mean_iou(matrix: Int[Tensor, "classes classes"]) -> float:
    """Mean intersection over union of the classes that occur in truth or prediction; NaN without any pixel."""
    matrix = matrix.double()
    shared = matrix.diagonal()
    united = matrix.sum(0) + matrix.sum(1) - shared
    return float((shared[united > 0] / united[united > 0]).mean())


def masked_regression(
    predicted: Float[Tensor, "*pixels"], target: Float[Tensor, "*pixels"], valid: Bool[Tensor, "*pixels"]
) -> Float[Tensor, ""]:
    """Mean squared error over the valid pixels, 0 when there are none."""
    error = torch.where(valid, predicted - target, torch.zeros_like(predicted))
    return error.square().sum() / valid.sum().clamp_min(1)


def _kept(logits: Tensor, mask: Tensor, valid: Tensor, ignore_index: int | None) -> Tensor:
    expected = (logits.shape[0], *logits.shape[2:])
    for name, tensor in (("mask", mask), ("valid", valid)):
        if tuple(tensor.shape) != expected:
            raise ValueError(f"{name} must be {expected} for logits {tuple(logits.shape)}, got {tuple(tensor.shape)}")
    kept = valid if ignore_index is None else valid & (mask != ignore_index)
    labels = mask[kept]
    if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < logits.shape[1]:
        raise ValueError(
            f"mask must lie in [0, {logits.shape[1]}) where valid, got {int(labels.min())} to {int(labels.max())}"
        )
    return kept
