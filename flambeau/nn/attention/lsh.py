"""Attention inside buckets of a locality-sensitive hash."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from flambeau.nn.attention.clusters import BucketCache, bucket_attention
from flambeau.nn.attention.projections import Projections, check_inputs


class LSHAttention(nn.Module):
    """Attention among tokens of one hash: the Reformer's (Kitaev et al. 2020, arXiv 2001.04451), one hash round.

    The hash is ``argmax [x R, -x R]`` of a fixed random R, which is saved with the weights. Queries and keys share a
    projection; a token takes itself only if it sees nothing else.

    Args:
        dim, heads: of the layer; head_dim is dim / heads if None.
        buckets: an even number of hashes.
        window: how many earlier tokens of its bucket a token sees (and later ones, if not causal).
        causal: no token sees a later one.

    Raises:
        ValueError: buckets odd, window below 1, or heads do not divide dim.
    """

    def __init__(
        self, dim: int, heads: int, buckets: int, window: int, causal: bool = True, *, head_dim: int | None = None
    ):
        super().__init__()
        if buckets < 2 or buckets % 2:
            raise ValueError(f"buckets must be even and at least 2, got {buckets}")
        if window < 1:
            raise ValueError(f"window must be at least 1, got {window}")
        self.dim, self.heads, self.buckets, self.window, self.causal = dim, heads, buckets, window, causal
        self.projections = Projections(dim, heads, head_dim, shared_qk=True)
        self.register_buffer("rotation", torch.randn(heads, self.projections.head_dim, buckets // 2))

    def new_cache(self, batch: int, capacity: int | None = None) -> BucketCache:
        """For decoding; it holds buckets * (window + 1) tokens whatever the length."""
        return BucketCache(batch, self.heads, self.buckets, self.window)

    def forward(
        self,
        x: Float[Tensor, "batch time dim"],
        context: None = None,
        mask: Bool[Tensor, "batch time"] | None = None,
        cache: BucketCache | None = None,
    ) -> tuple[Float[Tensor, "batch time dim"], Float[Tensor, ""]]:
        """See `flambeau.nn.attention`. Raises ValueError for a context, shapes that do not fit, or a cache of a layer
        that is not causal."""
        check_inputs(x, self.dim, mask, context)
        queries, keys, values = self.project(x)
        if cache is None:
            y, aux = self.attend(queries, keys, values, mask)
            return self.projections.merge(y), aux
        if not self.causal:
            raise ValueError("cache: only a causal layer decodes token by token")
        y = cache.extend(queries, keys, values, self.hash(queries), mask_self=True, mask=mask)
        return self.projections.merge(y), x.new_zeros(())

    def project(self, x: Tensor, context: None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys of length sqrt(head_dim), and values, [batch, heads, time, head_dim]."""
        queries, _, values = self.projections(x)
        queries = F.normalize(queries, dim=-1) * queries.shape[-1] ** 0.5
        return queries, queries, values

    def hash(self, queries: Float[Tensor, "batch heads time dim"]) -> Int[Tensor, "batch heads time"]:
        """Bucket of every query."""
        rotated = queries.detach() @ self.rotation.to(queries.dtype)
        return torch.cat([rotated, -rotated], -1).argmax(-1)

    def attend(
        self, queries: Tensor, keys: Tensor, values: Tensor, mask: Bool[Tensor, "batch time"] | None = None
    ) -> tuple[Float[Tensor, "batch heads time value_dim"], Float[Tensor, ""]]:
        """Attention inside the buckets, [batch, heads, time, dim]."""
        y = bucket_attention(
            queries, keys, values, self.hash(queries), self.window, causal=self.causal, mask_self=True, mask=mask
        )
        return y, queries.new_zeros(())
