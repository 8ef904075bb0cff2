"""Losses and metrics that what is invalid cannot move."""

import pytest
import torch
from torch.nn import functional as F

from flambeau.objectives.segmentation import (
    confusion_matrix,
    masked_cross_entropy,
    masked_jaccard,
    masked_regression,
    mean_iou,
)


@pytest.fixture
def case():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, 9, 7, generator=generator, dtype=torch.float64)
    mask = torch.randint(0, 4, (2, 9, 7), generator=generator)
    return logits, mask, torch.rand(2, 9, 7, generator=generator) > 0.4


def test_cross_entropy_is_that_of_the_valid_pixels(case):
    logits, mask, valid = case
    picked, labels = logits.movedim(1, -1)[valid], mask[valid]
    assert torch.allclose(masked_cross_entropy(logits, mask, valid), F.cross_entropy(picked, labels))
    weight = torch.tensor([1.0, 0.5, 2.0, 0.1], dtype=torch.float64)
    expected = F.cross_entropy(picked, labels, weight=weight)
    assert torch.allclose(masked_cross_entropy(logits, mask, valid, weight=weight), expected)
    expected = F.cross_entropy(picked, labels, ignore_index=2)
    assert torch.allclose(masked_cross_entropy(logits, mask, valid, ignore_index=2), expected)
    p = picked.softmax(1).gather(1, labels[:, None])[:, 0]
    assert torch.allclose(masked_cross_entropy(logits, mask, valid, gamma=2.0), (-((1 - p) ** 2) * p.log()).mean())


def test_invalid_pixels_have_no_influence_and_no_gradient(case):
    logits, mask, valid = case
    wild = torch.where(valid, mask, torch.full_like(mask, 9999))
    for loss in (masked_cross_entropy, masked_jaccard):
        leaf = torch.where(valid[:, None], logits, logits * 50).requires_grad_()
        loss(leaf, wild, valid).backward()
        assert torch.allclose(loss(leaf, wild, valid), loss(logits, mask, valid))
        assert (leaf.grad.movedim(1, -1)[~valid] == 0).all() and (leaf.grad.movedim(1, -1)[valid] != 0).any()
        nothing = loss(leaf, wild, torch.zeros_like(valid))
        nothing.backward()
        assert float(nothing) == 0 and bool(leaf.grad.isfinite().all())
    target = torch.where(valid, torch.ones(2, 9, 7), torch.inf)
    assert float(masked_regression(torch.zeros(2, 9, 7), target, valid)) == 1


def test_jaccard_of_certain_predictions_is_the_intersection_over_union(case):
    _, mask, valid = case
    said = mask.roll(1, -1)
    certain = 1e3 * F.one_hot(said, 4).permute(0, 3, 1, 2).double()
    matrix = confusion_matrix(said, mask, valid, 4)
    assert torch.allclose(masked_jaccard(certain, mask, valid), torch.tensor(1 - mean_iou(matrix), dtype=torch.float64))


def test_the_matrix_adds_up_and_the_mean_leaves_out_absent_classes(case):
    _, mask, valid = case
    said = mask.flip(0)
    matrix = confusion_matrix(said, mask, valid, 5)
    assert matrix.sum() == valid.sum() and matrix[1, 2] == ((mask == 1) & (said == 2) & valid).sum()
    halves = [confusion_matrix(said[n], mask[n], valid[n], 5) for n in range(2)]
    assert torch.equal(halves[0] + halves[1], matrix)
    ious = []
    for label in range(4):
        a, b = (mask == label) & valid, (said == label) & valid
        ious.append(float((a & b).sum() / (a | b).sum()))
    assert abs(mean_iou(matrix) - sum(ious) / 4) < 1e-6
    assert mean_iou(torch.zeros(3, 3, dtype=torch.int64)) != mean_iou(torch.eye(3))


def test_what_does_not_fit_is_said(case):
    logits, mask, valid = case
    with pytest.raises(ValueError, match=r"mask must be \(2, 9, 7\)"):
        masked_cross_entropy(logits, mask[:, :8], valid)
    with pytest.raises(ValueError, match=r"mask must lie in \[0, 4\) where valid, got 0 to 7"):
        masked_cross_entropy(logits, mask.clamp_min(0).where(mask != 3, 7), torch.ones_like(valid))
    with pytest.raises(ValueError, match=r"predicted must lie in \[0, 4\)"):
        confusion_matrix(mask + 4, mask, valid, 4)
