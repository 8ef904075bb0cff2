"""One draft is accepted with probability 1 - TV(p, q), and what is emitted is a sample of p."""

import pytest
import torch

from flambeau.generation.enumeration import chi_square
from flambeau.generation.sampler import draw
from flambeau.generation.verification import residual, verify_chain

COUNT = 100_000


@pytest.mark.parametrize("redraw", ["independent", "maximal_coupling"])
@pytest.mark.parametrize("seed", range(3))
def test_acceptance_is_one_minus_total_variation(seed, redraw):
    generator = torch.Generator().manual_seed(seed)
    p, q = torch.rand(2, 6, generator=generator, dtype=torch.float64).pow(2).unbind()
    p, q = p / p.sum(), q / q.sum()
    noise = torch.rand(4, COUNT, 1, generator=generator, dtype=torch.float64)
    drafts = draw(q.expand(COUNT, 1, 6), noise[0])
    target = torch.stack([p, torch.full_like(p, 1 / 6)]).expand(COUNT, 2, 6)
    draws = torch.cat([noise[2], noise[3]], 1)
    ones = torch.ones(COUNT, dtype=torch.long)
    tokens, accepted = verify_chain(drafts, q.expand(COUNT, 1, 6), target, ones, noise[1], draws, redraw)
    assert abs(float(accepted.double().mean()) - float(torch.minimum(p, q).sum())) < 0.01
    assert chi_square(torch.bincount(tokens[:, 0], minlength=6).double(), p) > 1e-3
    rejected = accepted == 0
    assert (tokens[~rejected, 0] == drafts[~rejected, 0]).all()


def test_redrawn_slots_follow_their_target_under_both_rules():
    generator = torch.Generator().manual_seed(0)
    p, q = torch.rand(2, 5, generator=generator, dtype=torch.float64).unbind()
    p, q = p / p.sum(), q / q.sum()
    for redraw in ("independent", "maximal_coupling"):
        noise = torch.rand(3, COUNT, 3, generator=generator, dtype=torch.float64)
        drafts = draw(q.expand(COUNT, 2, 5), noise[0, :, :2])
        drafts[:, 0] = 0
        first = torch.zeros(5, dtype=torch.float64).scatter(0, torch.tensor([0]), 1.0)
        never = torch.roll(first, 1)  # the first draft is always rejected
        target = torch.stack([never, p, p]).expand(COUNT, 3, 5)
        drafted = torch.stack([first, q]).expand(COUNT, 2, 5)
        counts = torch.full((COUNT,), 2)
        tokens, accepted = verify_chain(drafts, drafted, target, counts, noise[1, :, :2], noise[2], redraw)
        assert (accepted == 0).all() and (tokens[:, 0] == 1).all()
        assert chi_square(torch.bincount(tokens[:, 1], minlength=5).double(), p) > 1e-3
        kept = float((tokens[:, 1] == drafts[:, 1]).double().mean())
        expected = torch.minimum(p, q).sum() if redraw == "maximal_coupling" else (p * q).sum()
        assert abs(kept - float(expected)) < 0.01


def test_residual_falls_back_where_nothing_is_left():
    p = torch.tensor([0.5, 0.5, 0.0])
    assert torch.equal(residual(p, p), p)
    assert torch.allclose(residual(p, torch.tensor([0.25, 0.0, 0.75])), torch.tensor([0.25, 0.5, 0.0]))
