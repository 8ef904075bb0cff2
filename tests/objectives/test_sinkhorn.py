"""Sinkhorn assignments and BYOL's distance against their definitions; over processes in test_contrastive_methods."""

import math

import pytest
import torch
import torch.nn.functional as F

from flambeau.objectives.normalized_mse import normalized_mse
from flambeau.objectives.sinkhorn import sinkhorn


def test_rows_and_columns_are_shared_equally():
    scores = torch.randn(48, 12, generator=torch.Generator().manual_seed(0))
    joint = sinkhorn(scores, epsilon=0.5, iterations=50) / 48
    torch.testing.assert_close(joint.sum(1), torch.full((48,), 1 / 48), atol=1e-6, rtol=0)
    torch.testing.assert_close(joint.sum(0), torch.full((12,), 1 / 12), atol=1e-4, rtol=0)


def test_it_is_the_iteration_of_the_paper_without_its_overflow():
    scores = torch.rand(10, 4, generator=torch.Generator().manual_seed(0)).double()
    q = (scores / 0.05).exp().T
    q /= q.sum()
    for _ in range(3):
        q /= q.sum(1, keepdim=True) * 4
        q /= q.sum(0, keepdim=True) * 10
    torch.testing.assert_close(sinkhorn(scores).double(), (q * 10).T, rtol=1e-4, atol=1e-5)
    large = sinkhorn(1000 * scores.float())
    assert torch.isfinite(large).all() and not torch.isfinite((1000 * scores.float() / 0.05).exp()).all()


def test_equal_scores_are_assigned_equally_and_without_gradient():
    codes = sinkhorn(torch.zeros(6, 3, requires_grad=True))
    torch.testing.assert_close(codes, torch.full((6, 3), 1 / 3))
    assert not codes.requires_grad


def test_clear_scores_are_kept_where_prototypes_are_used_equally():
    codes = sinkhorn(torch.eye(4).repeat(3, 1))
    assert torch.equal(codes.argmax(1), torch.arange(4).repeat(3)) and codes.max(1).values.min() > 0.99


@pytest.mark.parametrize("bad", [dict(epsilon=0.0), dict(iterations=0)])
def test_bad_values_are_named(bad):
    with pytest.raises(ValueError, match="epsilon must be positive and iterations at least 1"):
        sinkhorn(torch.zeros(4, 3), **bad)
    with pytest.raises(ValueError, match=r"\[batch, prototypes\]"):
        sinkhorn(torch.zeros(4))


def test_the_distance_of_directions():
    p, t = torch.randn(5, 8), torch.randn(5, 8)
    expected = (F.normalize(p, dim=1) - F.normalize(t, dim=1)).square().sum(1).mean()
    torch.testing.assert_close(normalized_mse(p, t), expected)
    assert normalized_mse(p, 7 * p).item() == pytest.approx(0, abs=1e-6)
    assert normalized_mse(p, -p).item() == pytest.approx(4, abs=1e-5) and math.isfinite(normalized_mse(p, 0 * p))
    t.requires_grad_()
    p.requires_grad_()
    normalized_mse(p, t).backward()
    assert t.grad is None and p.grad is not None
    with pytest.raises(ValueError, match=r"\[batch, dim\], got \[5, 8\] and \[5, 7\]"):
        normalized_mse(p, t[:, :7])
