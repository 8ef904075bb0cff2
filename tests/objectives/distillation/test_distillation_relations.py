"""Losses on relations between samples or channels against NumPy in float64, and what they refuse."""

import math

import numpy as np
import pytest
import torch

from flambeau.objectives.distillation import (
    CCKDLoss,
    ICKDLoss,
    PKTLoss,
    RKDAngleLoss,
    RKDDistanceLoss,
    RKDLoss,
    SPKDLoss,
)

B = 7


@pytest.fixture
def features():
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(B, 3, 2, 2, generator=generator, dtype=torch.float64)
    return student, torch.randn(B, 20, generator=generator, dtype=torch.float64)


def rows(x):
    return x.numpy().reshape(B, -1)


def huber(a, b):
    d = np.abs(a - b)
    return np.where(d < 1, 0.5 * d**2, d - 0.5).mean()


def assert_close(ours, reference):
    np.testing.assert_allclose(ours.item(), reference, rtol=1e-6)


def relative_distances(x):
    d = np.array([[np.linalg.norm(a - b) for b in x] for a in x])
    return d / d[d > 0].mean()


def angles(x):
    """cos of the angle at j between i and k, 0 where two of them are one sample."""
    out = np.zeros((B, B, B))
    for j in range(B):
        for i in range(B):
            for k in range(B):
                u, v = x[i] - x[j], x[k] - x[j]
                if i != j and k != j:
                    out[j, i, k] = u @ v / np.linalg.norm(u) / np.linalg.norm(v)
    return out


def test_relational_distances_and_angles(features):
    s, t = (rows(x) for x in features)
    distance = huber(relative_distances(s), relative_distances(t))
    angle = huber(angles(s), angles(t))
    assert_close(RKDDistanceLoss()(*features), distance)
    assert_close(RKDAngleLoss()(*features), angle)
    assert_close(RKDLoss()(*features), 25 * distance + 50 * angle)
    # scale, shift and rotation of the teacher's space do not count
    rotation, _ = torch.linalg.qr(torch.randn(20, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))
    moved = 3 * features[1] @ rotation + 2
    torch.testing.assert_close(RKDLoss()(features[0], moved), RKDLoss()(*features))


@pytest.mark.parametrize("order", [1, 2, 4])
def test_correlation_congruence_by_the_gaussian_series(features, order):
    kernels = []
    for x in features:
        x = rows(x)
        x = x / np.linalg.norm(x, axis=1, keepdims=True)
        series = sum((2 * 0.4) ** p / math.factorial(p) * (x @ x.T) ** p for p in range(order + 1))
        kernels.append(np.exp(-2 * 0.4) * series)
    assert_close(CCKDLoss(gamma=0.4, order=order)(*features), ((kernels[0] - kernels[1]) ** 2).sum() / B**2)


def test_correlation_congruence_series_is_that_of_the_gaussian(features):
    x = features[1] / features[1].norm(dim=1, keepdim=True)
    gaussian = torch.exp(-0.4 * torch.cdist(x, x).square())
    torch.testing.assert_close(CCKDLoss(gamma=0.4, order=20).correlation(features[1]), gaussian)


def test_correlation_congruence_by_products(features):
    s, t = (rows(x) for x in features)
    assert_close(CCKDLoss("bilinear")(*features), ((s @ s.T - t @ t.T) ** 2).sum() / B**2)


def test_similarity_preserving(features):
    grams = []
    for x in features:
        g = rows(x) @ rows(x).T
        grams.append(g / np.sqrt((g**2).sum(1, keepdims=True)))
    assert_close(SPKDLoss()(*features), ((grams[0] - grams[1]) ** 2).sum() / B**2)


def test_probabilistic_transfer(features):
    chances = []
    for x in features:
        x = rows(x) / (np.linalg.norm(rows(x), axis=1, keepdims=True) + 1e-7)
        a = (x @ x.T + 1) / 2
        chances.append(a / a.sum(1, keepdims=True))
    p, q = chances
    assert_close(PKTLoss()(*features), np.mean(q * np.log((q + 1e-7) / (p + 1e-7))))


def test_channel_correlation():
    generator = torch.Generator().manual_seed(2)
    student = torch.randn(B, 4, 3, 3, generator=generator, dtype=torch.float64)
    teacher = torch.randn(B, 4, 2, 5, generator=generator, dtype=torch.float64)
    total = 0.0
    for s, t in zip(student.numpy().reshape(B, 4, -1), teacher.numpy().reshape(B, 4, -1)):
        g, h = (x @ x.T for x in (s, t))
        g, h = (x / np.sqrt((x**2).sum(1, keepdims=True)) for x in (g, h))
        total += ((g - h) ** 2).sum() / 4
    assert_close(ICKDLoss()(student, teacher), total / B)


@pytest.mark.parametrize("loss", [RKDLoss(), CCKDLoss(), SPKDLoss(), PKTLoss()])
def test_autocast_does_not_round(loss, features):
    student, teacher = (x.float() for x in features)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (
            torch.equal(loss(student, teacher), loss(student, teacher))
            and loss(student, teacher).dtype == torch.float32
        )
        rounded = loss(student, teacher)
    assert torch.equal(rounded, loss(student, teacher))


def test_equal_samples_have_ordinary_gradients():
    student = torch.ones(4, 3, requires_grad=True)
    loss = RKDLoss()(student, torch.rand(4, 3))
    loss.backward()
    assert loss.isfinite() and student.grad.abs().max() < 1e3


@pytest.mark.parametrize("loss", [RKDDistanceLoss(), RKDAngleLoss(), CCKDLoss(), SPKDLoss(), PKTLoss()])
def test_batches_must_agree(loss):
    with pytest.raises(ValueError, match=r"student \[4, 3\] and teacher \[5, 3\]"):
        loss(torch.zeros(4, 3), torch.zeros(5, 3))


def test_bad_input():
    for loss in (RKDDistanceLoss(), RKDAngleLoss()):
        with pytest.raises(ValueError, match="batch of 1"):
            loss(torch.zeros(1, 3), torch.zeros(1, 3))
    with pytest.raises(ValueError, match=r"\[2, 3, 4, 4\] and teacher \[2, 5, 4, 4\]"):
        ICKDLoss()(torch.zeros(2, 3, 4, 4), torch.zeros(2, 5, 4, 4))
    for wrong in (
        lambda: CCKDLoss("laplace"),
        lambda: CCKDLoss(gamma=0.0),
        lambda: CCKDLoss(order=0),
        lambda: PKTLoss(0.0),
    ):
        with pytest.raises(ValueError, match="got"):
            wrong()
