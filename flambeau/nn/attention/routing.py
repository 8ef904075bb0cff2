"""Attention inside clusters of queries and keys, found by online k-means."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from flambeau.nn.attention.auxiliary import AuxiliaryLoss
from flambeau.nn.attention.clusters import (
    BucketCache,
    Members,
    balanced_attention,
    bucket_attention,
    nearest_cluster_attention,
    top_members,
)
from flambeau.nn.attention.projections import Projections, check_inputs
from flambeau.nn.online_kmeans import OnlineKMeans


@dataclass
class History:
    """Queries, keys and values of all tokens so far (balanced selection), or those of the context (cross-attention)."""

    queries: Tensor | None = None
    keys: Tensor | None = None
    values: Tensor | None = None
    mask: Tensor | None = None
    members: Members | None = None


class RoutingAttention(nn.Module):
    """Sparse attention by content: tokens attend inside clusters of their queries and keys, O(T^1.5) with
    num_clusters and window near sqrt(T).

    Roy, Saffar, Vaswani and Grangier 2020, "Efficient Content-Based Sparse Attention with Routing Transformers", arXiv
    2003.05997. Queries and keys are LayerNormed without scale and bias, and centroids follow them (`OnlineKMeans`).

    Two ways to select who attends to whom:

    - "causal": a token joins its best cluster and attends to the last `window` earlier members of it. Nothing depends
      on later tokens, and a cache of window + 1 tokens per cluster decodes. In cross-attention a query attends to the
      `window` best keys of its best cluster.
    - "balanced", as published: every cluster takes its `window` best tokens of the whole sequence. Later tokens compete
      for the places, so which earlier keys a token sees depends on the future: with ``causal=True`` the likelihood of a
      training pass is not that of step-by-step decoding, which selects among the past alone.

    Args:
        dim, heads: of the layer; head_dim is dim / heads if None.
        num_clusters: centroids per head.
        window: tokens per cluster.
        causal: no token sees a later one (up to the above).
        shared_qk: one projection gives queries and keys; None is `causal`.
        selection: "causal" or "balanced"; None is "causal" for causal layers and "balanced" for others.
        decay: of the centroids' moving average; None learns them by gradient.
        commitment: weight of the squared distance of queries and keys to their centroids in the auxiliary loss.
        cross: attend to a context.
        scale: of the logits; 1 / sqrt(head_dim) if None.
        mask_self: a token takes itself only if it sees nothing else (of use with shared queries and keys).
        rank_bias: learned bias by distance inside the cluster.
        init: of the centroids, see `OnlineKMeans`.
        normalize_centroids: LayerNorm centroids after every update. Not in the paper; without it they shrink, and
            tokens drift between clusters, late in training.
        revive_below: see `OnlineKMeans`.

    Raises:
        ValueError: sizes that do not fit, or causal selection of keys that are not queries too.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        num_clusters: int,
        window: int,
        causal: bool = True,
        shared_qk: bool | None = None,
        selection: Literal["causal", "balanced"] | None = None,
        decay: float | None = 0.999,
        commitment: float = 1e-4,
        cross: bool = False,
        *,
        head_dim: int | None = None,
        scale: float | None = None,
        mask_self: bool = False,
        rank_bias: bool = False,
        init: Literal["normal", "sample", "kmeans"] = "normal",
        normalize_centroids: bool = True,
        revive_below: float = 0.0,
    ):
        super().__init__()
        shared_qk = (causal and not cross) if shared_qk is None else shared_qk
        selection = ("causal" if causal else "balanced") if selection is None else selection
        if selection not in ("causal", "balanced"):
            raise ValueError(f"selection must be 'causal' or 'balanced', got {selection!r}")
        for name, size in (("num_clusters", num_clusters), ("window", window)):
            if size < 1:
                raise ValueError(f"{name} must be at least 1, got {size}")
        if commitment < 0:
            raise ValueError(f"commitment must not be negative, got {commitment}")
        if cross and shared_qk:
            raise ValueError("shared_qk: queries of x and keys of a context cannot share a projection")
        if cross and mask_self:
            raise ValueError("mask_self: a context does not hold the query itself")
        if not cross and selection == "causal" and not (causal and shared_qk):
            raise ValueError("selection='causal' needs causal=True and shared_qk=True: a token is found by its query")
        if cross and selection == "causal" and rank_bias:
            raise ValueError("rank_bias needs balanced selection in cross-attention")
        self.dim, self.heads, self.num_clusters, self.window = dim, heads, num_clusters, window
        self.causal, self.selection, self.cross = causal, selection, cross
        self.commitment, self.mask_self = commitment, mask_self
        self.projections = Projections(dim, heads, head_dim, shared_qk=shared_qk, qk_norm=True)
        self.scale = self.projections.head_dim**-0.5 if scale is None else scale
        self.kmeans = OnlineKMeans(
            heads, num_clusters, self.projections.head_dim,
            decay=decay, init=init, normalize=normalize_centroids, revive_below=revive_below,
        )  # fmt: skip
        distances = window + 1 if selection == "causal" else 2 * window - 1
        self.rank_bias = nn.Parameter(torch.zeros(heads, distances)) if rank_bias else None
        self.auxiliary = AuxiliaryLoss()
        self._clamped = False

    def new_cache(self, batch: int, capacity: int | None = None) -> BucketCache | History:
        """For decoding. `capacity` is not needed: a causal layer keeps num_clusters * (window + 1) tokens, a balanced
        one grows."""
        if self.selection == "causal" and not self.cross:
            return BucketCache(batch, self.heads, self.num_clusters, self.window)
        return History()

    def forward(
        self,
        x: Float[Tensor, "batch time dim"],
        context: Float[Tensor, "batch keytime dim"] | None = None,
        mask: Bool[Tensor, "batch time"] | None = None,
        cache: BucketCache | History | None = None,
        context_mask: Bool[Tensor, "batch keytime"] | None = None,
    ) -> tuple[Float[Tensor, "batch time dim"], Float[Tensor, ""]]:
        """See `flambeau.nn.attention`. A cache of a cross layer keeps the keys of the first context it is given.

        Raises:
            ValueError: a shape that does not fit, or a context that is missing or not expected.
        """
        check_inputs(x, self.dim, mask, context, context_mask, cross=self.cross)
        queries, keys, values = self.project(x, context)
        if cache is None:
            self._warn_if_clamped(min(queries.shape[2], keys.shape[2]))
            y, aux = self.attend(queries, keys, values, mask, context_mask)
        elif isinstance(cache, BucketCache):
            clustering = self.kmeans(queries, mask)
            aux = self.commitment * clustering.loss
            y = cache.extend(
                queries,
                keys,
                values,
                clustering.index,
                scale=self.scale,
                mask_self=self.mask_self,
                mask=mask,
                bias=self.rank_bias,
            )
        elif self.cross:
            if cache.keys is None:
                cache.keys, cache.values, cache.mask = keys, values, context_mask
            assert cache.values is not None
            y, aux = self.attend(queries, cache.keys, cache.values, mask, cache.mask)
        else:
            y, aux = self._reselect(queries, keys, values, mask, cache)
        self.auxiliary.value = aux if self.training and torch.is_grad_enabled() else None
        return self.projections.merge(y), aux

    def project(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries and keys on the sphere of radius sqrt(head_dim), and values, [batch, heads, time, head_dim]."""
        return self.projections(x, context)

    def attend(
        self,
        queries: Float[Tensor, "batch heads time head_dim"],
        keys: Float[Tensor, "batch heads keytime head_dim"],
        values: Float[Tensor, "batch heads keytime value_dim"],
        mask: Bool[Tensor, "batch time"] | None = None,
        key_mask: Bool[Tensor, "batch keytime"] | None = None,
    ) -> tuple[Float[Tensor, "batch heads time value_dim"], Float[Tensor, ""]]:
        """Cluster, select and attend. `key_mask` is `mask` unless the layer is a cross layer."""
        key_mask = key_mask if self.cross else mask
        time = queries.shape[2]
        if self.projections.key is None:
            clustering = self.kmeans(queries, mask)
            query_scores = key_scores = clustering.scores
        else:
            clustering = self.kmeans(torch.cat([queries, keys], 2), _both(mask, key_mask, queries, keys))
            query_scores, key_scores = clustering.scores[:, :, :time], clustering.scores[:, :, time:]
        aux = self.commitment * clustering.loss
        if self.selection == "causal" and not self.cross:
            options: dict[str, Any] = dict(causal=True, scale=self.scale, mask_self=self.mask_self, mask=mask)
            index = clustering.index
            return bucket_attention(queries, keys, values, index, self.window, bias=self.rank_bias, **options), aux
        key_members = top_members(key_scores, min(self.window, keys.shape[2]), key_mask)
        if self.selection == "causal":
            index = clustering.index[:, :, :time]
            return nearest_cluster_attention(queries, keys, values, index, key_members, self.scale, mask), aux
        shared = self.projections.key is None
        query_members = key_members if shared else top_members(query_scores, min(self.window, time), mask)
        bias = self.rank_bias
        if bias is not None:
            ranks = torch.arange(query_members.index.shape[3], device=bias.device)[:, None]
            bias = bias[:, ranks - torch.arange(key_members.index.shape[3], device=bias.device) + self.window - 1]
        y = balanced_attention(
            queries, keys, values, query_members, key_members,
            causal=self.causal and not self.cross, scale=self.scale, mask_self=self.mask_self, bias=bias,
        )  # fmt: skip
        return y, aux

    def _reselect(
        self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, cache: History
    ) -> tuple[Tensor, Tensor]:
        """Every new token selects among itself and the past, as if the sequence ended with it."""
        new = queries.shape[2]
        mask = torch.ones(queries.shape[0], new, dtype=torch.bool, device=queries.device) if mask is None else mask
        if cache.queries is not None:
            old = (cache.queries, cache.keys, cache.values)
            queries, keys, values = (torch.cat([a, b], 2) for a, b in zip(old, (queries, keys, values)))
            mask = torch.cat([cache.mask, mask], 1)
        cache.queries, cache.keys, cache.values, cache.mask = queries, keys, values, mask
        outputs, aux = [], queries.new_zeros(())
        for end in range(queries.shape[2] - new + 1, queries.shape[2] + 1):
            y, aux = self.attend(queries[:, :, :end], keys[:, :, :end], values[:, :, :end], mask[:, :end])
            outputs.append(y[:, :, -1:])
        return torch.cat(outputs, 2), aux

    def _warn_if_clamped(self, length: int) -> None:
        if self.selection == "balanced" and self.window > length and not self._clamped:
            self._clamped = True
            warnings.warn(f"window {self.window} is clamped to the {length} tokens there are", stacklevel=3)


def _both(mask: Tensor | None, key_mask: Tensor | None, queries: Tensor, keys: Tensor) -> Tensor | None:
    """The masks of queries and keys side by side, None if there is no padding at all."""
    if mask is None and key_mask is None:
        return None
    masks = []
    for given, of in ((mask, queries), (key_mask, keys)):
        whole = torch.ones(of.shape[0], of.shape[2], dtype=torch.bool, device=of.device)
        masks.append(whole if given is None else given)
    return torch.cat(masks, 1)
