"""Attention of the forecasting baselines."""

import pytest
import torch

from flambeau.nn.series.attention import FullAttention, ProbSparseAttention, ProjectedHeads


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_prob_sparse_with_all_queries_active_is_full_attention():
    q, k, v = (normal(2, 10, 2, 4, seed=s) for s in range(3))
    torch.testing.assert_close(ProbSparseAttention(factor=10)(q, k, v), FullAttention()(q, k, v))
    causal = ProbSparseAttention(factor=10, causal=True)(q, k, v)
    torch.testing.assert_close(causal, FullAttention(causal=True)(q, k, v))


def test_lazy_queries_take_the_mean_of_the_values():
    torch.manual_seed(0)
    q, k, v = (normal(1, 40, 1, 4, seed=s) for s in range(3))
    out = ProbSparseAttention(factor=1)(q, k, v)
    lazy = (out - v.mean(1, keepdim=True)).abs().amax(dim=(2, 3)) < 1e-6
    assert lazy.sum() == 40 - 4  # ceil(ln 40) = 4 queries are active


def test_causal_attention_does_not_see_later_steps():
    q, k, v = (normal(2, 12, 2, 4, seed=s) for s in range(3))
    changed = v.clone()
    changed[:, 8:] += 100
    for attention in (FullAttention(causal=True), ProbSparseAttention(2, causal=True)):
        outs = []
        for values in (v, changed):
            torch.manual_seed(1)
            outs.append(attention(q, k, values)[:, :8])
        torch.testing.assert_close(*outs)


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="multiple of heads, got 10 and 4"):
        ProjectedHeads(FullAttention(), 10, 4)
    with pytest.raises(ValueError, match="factor must be at least 1"):
        ProbSparseAttention(0)
