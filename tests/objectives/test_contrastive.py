"""InfoNCE and NT-Xent against their definitions, and over processes."""

import math
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parent))
import contrastive_workers as w

from flambeau.objectives.contrastive import info_nce, nt_xent
from flambeau.training.parallel import run_processes


def test_info_nce_is_its_definition():
    q, k = torch.randn(5, 8).double(), torch.randn(5, 8).double()
    total = 0.0
    for i in range(5):
        scores = [F.cosine_similarity(q[i], k[j], dim=0) / 0.3 for j in range(5)]
        total -= (scores[i] - torch.stack(scores).logsumexp(0)).item() / 5
    assert info_nce(q, k, temperature=0.3).item() == pytest.approx(total, abs=1e-12)


def test_identical_views_with_orthogonal_negatives_have_a_closed_form():
    eye = torch.eye(6)
    expected = math.log(1 + 5 * math.exp(-1 / 0.2))
    assert info_nce(3 * eye, eye, temperature=0.2).item() == pytest.approx(expected, rel=1e-5)
    assert info_nce(eye[:2], eye[:2], negatives=eye[2:], temperature=0.2).item() == pytest.approx(
        math.log(1 + 4 * math.exp(-1 / 0.2)), rel=1e-5
    )


def test_nt_xent_is_its_definition():
    a, b = torch.randn(4, 6).double(), torch.randn(4, 6).double()
    views = F.normalize(torch.cat([a, b]), dim=1)
    similar = views @ views.T / 0.5
    total = 0.0
    for i in range(8):
        others = [j for j in range(8) if j != i]
        total -= (similar[i, (i + 4) % 8] - similar[i, others].logsumexp(0)).item() / 8
    assert nt_xent(a, b, temperature=0.5).item() == pytest.approx(total, abs=1e-12)


def test_two_processes_are_one_on_the_joined_batch():
    outcomes = run_processes(w.both_losses, 2)
    q, k = w.batch()
    for name, loss in (("info_nce", info_nce), ("nt_xent", nt_xent)):
        a, b = q.clone().requires_grad_(), k.clone().requires_grad_()
        alone = loss(a, b, temperature=0.4)
        alone.backward()
        assert sum(o[name] for o in outcomes) / 2 == pytest.approx(alone.item(), abs=1e-6)
        for place, whole in enumerate((a.grad, b.grad)):
            # Each process's loss is the mean over its half, so gradients add up to twice those of the joint mean.
            ours = torch.cat([o[f"{name} gradients"][place] for o in outcomes]) / 2
            torch.testing.assert_close(ours, whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("loss", [info_nce, nt_xent])
def test_bad_input_is_named(loss):
    with pytest.raises(ValueError, match=r"\[batch, dim\], got \[2, 3\] and \[2, 4\]"):
        loss(torch.randn(2, 3), torch.randn(2, 4))
    with pytest.raises(ValueError, match="at least two samples"):
        loss(torch.randn(1, 3), torch.randn(1, 3))
    with pytest.raises(ValueError, match="temperature"):
        loss(torch.randn(2, 3), torch.randn(2, 3), temperature=0.0)
