"""Attention inside clusters drawn at random: the control for clusters that mean something."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from flambeau.nn.attention.clusters import BucketCache, bucket_attention
from flambeau.nn.attention.projections import Projections, check_inputs


class RandomRoutingAttention(nn.Module):
    """Causal routing whose clusters are drawn by position instead of content (the random baseline of Roy et al. 2020,
    arXiv 2003.05997, table 1).

    The cluster of a position in a head is a fixed hash of both, so that decoding finds it again at any length.

    Args:
        dim, heads: of the layer; head_dim is dim / heads if None.
        num_clusters: per head.
        window: how many earlier members of its cluster a token sees (and later ones, if not causal).
        causal: no token sees a later one.
        shared_qk, qk_norm: see `flambeau.nn.attention.projections.Projections`; the layer then differs from
            `RoutingAttention` in the choice of clusters alone.
        scale: of the logits; 1 / sqrt(head_dim) if None.
        mask_self: a token takes itself only if it sees nothing else.
        seed: of the hash.

    Raises:
        ValueError: a size below 1, or heads do not divide dim.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        num_clusters: int,
        window: int,
        causal: bool = True,
        *,
        head_dim: int | None = None,
        shared_qk: bool = False,
        qk_norm: bool = False,
        scale: float | None = None,
        mask_self: bool = False,
        seed: int = 0,
    ):
        super().__init__()
        for name, size in (("num_clusters", num_clusters), ("window", window)):
            if size < 1:
                raise ValueError(f"{name} must be at least 1, got {size}")
        self.dim, self.heads, self.num_clusters, self.window = dim, heads, num_clusters, window
        self.causal, self.scale, self.mask_self, self.seed = causal, scale, mask_self, seed
        self.projections = Projections(dim, heads, head_dim, shared_qk=shared_qk, qk_norm=qk_norm)

    def new_cache(self, batch: int, capacity: int | None = None) -> BucketCache:
        """For decoding; it holds num_clusters * (window + 1) tokens whatever the length."""
        return BucketCache(batch, self.heads, self.num_clusters, self.window)

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
        clusters = self.clusters(x.shape[1], x.device, start=cache.length).expand(x.shape[0], -1, -1)
        y = cache.extend(queries, keys, values, clusters, scale=self.scale, mask_self=self.mask_self, mask=mask)
        return self.projections.merge(y), x.new_zeros(())

    def project(self, x: Tensor, context: None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, [batch, heads, time, head_dim]."""
        return self.projections(x)

    def clusters(self, time: int, device: torch.device, start: int = 0) -> Int[Tensor, "heads time"]:
        """Cluster of each head's positions start..start+time-1."""
        position = torch.arange(start, start + time, device=device)
        mixed = position + (torch.arange(self.heads, device=device)[:, None] << 32) + (self.seed << 48)
        for multiplier in (0x2C1B3C6D297A2D39, 0x5851F42D4C957F2D):  # multiply and fold, as in splitmix64
            mixed = (mixed ^ (mixed >> 29)) * multiplier
        return ((mixed >> 33) & 0x7FFFFFFF) % self.num_clusters

    def attend(
        self, queries: Tensor, keys: Tensor, values: Tensor, mask: Bool[Tensor, "batch time"] | None = None
    ) -> tuple[Float[Tensor, "batch heads time value_dim"], Float[Tensor, ""]]:
        """Attention inside the clusters, [batch, heads, time, dim]."""
        clusters = self.clusters(queries.shape[2], queries.device).expand(queries.shape[0], -1, -1)
        y = bucket_attention(
            queries, keys, values, clusters, self.window,
            causal=self.causal, scale=self.scale, mask_self=self.mask_self, mask=mask,
        )  # fmt: skip
        return y, queries.new_zeros(())
