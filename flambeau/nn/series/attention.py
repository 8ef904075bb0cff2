"""What forecasters put between their projections: full and ProbSparse attention, over ``[batch, time, head, dim]``."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class ProjectedHeads(nn.Module):
    """Query, key, value and output projections around a mechanism such as :class:`~flambeau.nn.AutoCorrelation`.

    Args:
        mechanism: module called with queries, keys and values ``[batch, time, head, dim // heads]``.
        dim: channels, a multiple of `heads`.

    Raises:
        ValueError: `dim` is not a multiple of `heads`.
    """

    def __init__(self, mechanism: nn.Module, dim: int, heads: int):
        super().__init__()
        if dim % heads:
            raise ValueError(f"dim must be a multiple of heads, got {dim} and {heads}")
        self.mechanism, self.heads = mechanism, heads
        self.query, self.key, self.value, self.out = (nn.Linear(dim, dim) for _ in range(4))

    def forward(
        self, x: Float[Tensor, "batch time dim"], context: Float[Tensor, "batch keytime dim"], **options: Any
    ) -> Float[Tensor, "batch time dim"]:
        queries, keys, values = (
            projected.unflatten(-1, (self.heads, -1))
            for projected in (self.query(x), self.key(context), self.value(context))
        )
        return self.out(self.mechanism(queries, keys, values, **options).flatten(2))


class FullAttention(nn.Module):
    """Scaled dot-product attention, causal on request (Vaswani et al. 2017).

    Args:
        causal: a step does not see later ones.
    """

    def __init__(self, *, causal: bool = False):
        super().__init__()
        self.causal = causal

    def forward(
        self,
        queries: Float[Tensor, "batch time head dim"],
        keys: Float[Tensor, "batch keytime head dim"],
        values: Float[Tensor, "batch keytime head dim"],
    ) -> Float[Tensor, "batch time head dim"]:
        q, k, v = (x.transpose(1, 2) for x in (queries, keys, values))
        return F.scaled_dot_product_attention(q, k, v, is_causal=self.causal).transpose(1, 2)


class ProbSparseAttention(nn.Module):
    """Attention for the queries that differ most from a uniform one (Informer, Zhou et al. 2021, section 3.1).

    A query's sparsity is estimated as the maximum less the sum over L of its scores with sampled keys. The
    ``factor * ceil(ln L)`` sparsest attend; the others take the mean of the values, or its running sum if causal, as
    in the published code.

    Args:
        factor: of the number of sampled keys and of active queries.
        causal: a step does not see later ones.
    """

    def __init__(self, factor: int = 5, *, causal: bool = False):
        super().__init__()
        if factor < 1:
            raise ValueError(f"factor must be at least 1, got {factor}")
        self.factor, self.causal = factor, causal

    def forward(
        self,
        queries: Float[Tensor, "batch time head dim"],
        keys: Float[Tensor, "batch keytime head dim"],
        values: Float[Tensor, "batch keytime head dim"],
    ) -> Float[Tensor, "batch time head dim"]:
        q, k, v = (x.transpose(1, 2) for x in (queries, keys, values))
        length, keylength = q.shape[2], k.shape[2]
        active, samples = (min(n, self.factor * math.ceil(math.log(max(n, 2)))) for n in (length, keylength))
        sampled = k[:, :, torch.randint(keylength, (length, samples), device=k.device)]
        scores = torch.einsum("bhld,bhlsd->bhls", q, sampled)
        sparsest = (scores.amax(-1) - scores.sum(-1) / keylength).topk(active, dim=-1).indices
        index = sparsest.unsqueeze(-1).expand(-1, -1, -1, q.shape[-1])
        logits = q.gather(2, index) @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        if self.causal:
            later = torch.arange(keylength, device=k.device) > sparsest.unsqueeze(-1)
            logits = logits.masked_fill(later, float("-inf"))
        lazy = v.cumsum(2) if self.causal else v.mean(2, keepdim=True).expand(-1, -1, length, -1)
        return lazy.scatter(2, index, (logits.softmax(-1) @ v).to(lazy.dtype)).transpose(1, 2)
