"""Attention to the neighbourhood and to every stride-th token."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from flambeau.nn.attention.local import LocalAttention, LocalCache
from flambeau.nn.attention.projections import Projections, check_inputs
from flambeau.nn.kv_cache import KVCache


class ColumnAttention(nn.Module):
    """Attention to the tokens a multiple of `stride` away: the columns of the sequence written in rows of `stride`.

    dim, heads: of the layer; head_dim is dim / heads if None. causal: no token sees a later one.
    """

    def __init__(self, dim: int, heads: int, stride: int, causal: bool = True, *, head_dim: int | None = None):
        super().__init__()
        if stride < 1:
            raise ValueError(f"stride must be at least 1, got {stride}")
        self.dim, self.stride, self.causal = dim, stride, causal
        self.projections = Projections(dim, heads, head_dim)

    def new_cache(self, batch: int, capacity: int) -> KVCache:
        """For decoding up to `capacity` tokens."""
        return KVCache(1, batch, capacity)

    def forward(
        self,
        x: Float[Tensor, "batch time dim"],
        context: None = None,
        mask: Bool[Tensor, "batch time"] | None = None,
        cache: KVCache | None = None,
    ) -> tuple[Float[Tensor, "batch time dim"], Float[Tensor, ""]]:
        """See `flambeau.nn.attention`. Raises ValueError for a context or shapes that do not fit."""
        check_inputs(x, self.dim, mask, context)
        queries, keys, values = self.project(x)
        if cache is None or int(cache.lengths.max()) == 0:
            y, aux = self.attend(queries, keys, values, mask)
            if cache is not None:
                self._write(keys, values, mask, cache)
            return self.projections.merge(y), aux
        first = int(cache.lengths[0])
        keys, values = self._write(keys, values, mask, cache)
        steps = []
        for t in range(x.shape[1]):
            column = slice((first + t) % self.stride, first + t + 1, self.stride)
            query = queries[:, :, t : t + 1]
            steps.append(F.scaled_dot_product_attention(query, keys[:, :, column], values[:, :, column]))
        return self.projections.merge(torch.cat(steps, 2)), x.new_zeros(())

    def project(self, x: Tensor, context: None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, [batch, heads, time, head_dim]."""
        return self.projections(x)

    def attend(
        self, queries: Tensor, keys: Tensor, values: Tensor, mask: Bool[Tensor, "batch time"] | None = None
    ) -> tuple[Float[Tensor, "batch heads time value_dim"], Float[Tensor, ""]]:
        """Dense attention inside every column, [batch, heads, time, dim]."""
        batch, _, time, _ = queries.shape
        padding = -time % self.stride
        held = torch.ones(batch, time, dtype=torch.bool, device=queries.device) if mask is None else mask
        held = F.pad(held, (0, padding)).unflatten(1, (-1, self.stride)).transpose(1, 2)  # [batch, stride, rows]
        columns = [
            F.pad(x, (0, 0, 0, padding)).unflatten(2, (-1, self.stride)).transpose(2, 3)
            for x in (queries, keys, values)
        ]
        visible = held[:, None, :, None]
        if self.causal:
            visible = visible & torch.ones(held.shape[2], held.shape[2], device=held.device).tril().bool()
        y = F.scaled_dot_product_attention(*columns, attn_mask=visible).nan_to_num()
        return y.transpose(2, 3).flatten(2, 3)[:, :, :time], queries.new_zeros(())

    def _write(self, keys: Tensor, values: Tensor, mask: Tensor | None, cache: KVCache) -> tuple[Tensor, Tensor]:
        if mask is not None:
            raise ValueError("mask: padding cannot be cached by StridedAttention; decode rows of equal length")
        append = cache.begin(keys.shape[2], keys.device)
        stored = cache.write(0, keys, values, append)
        cache.commit(append)
        return stored


class StridedAttention(nn.Module):
    """The strided pattern of the Sparse Transformer (Child et al. 2019, arXiv 1904.10509), O(T^1.5) with stride near
    sqrt(T): half of the heads see the neighbourhood, the others every stride-th token.

    Args:
        dim, heads: of the layer, heads even.
        stride: also the block of the local heads.
        causal: no token sees a later one.

    Raises:
        ValueError: heads are odd or do not divide dim.
    """

    def __init__(self, dim: int, heads: int, stride: int, causal: bool = True):
        super().__init__()
        if heads % 2 or dim % heads:
            raise ValueError(f"heads must be even and divide dim, got {heads} and {dim}")
        self.local = LocalAttention(dim, heads // 2, stride, causal, head_dim=dim // heads)
        self.columns = ColumnAttention(dim, heads // 2, stride, causal, head_dim=dim // heads)

    def new_cache(self, batch: int, capacity: int) -> tuple[LocalCache, KVCache]:
        """For decoding up to `capacity` tokens."""
        return self.local.new_cache(batch), self.columns.new_cache(batch, capacity)

    def forward(
        self,
        x: Float[Tensor, "batch time dim"],
        context: None = None,
        mask: Bool[Tensor, "batch time"] | None = None,
        cache: tuple[LocalCache, KVCache] | None = None,
    ) -> tuple[Float[Tensor, "batch time dim"], Float[Tensor, ""]]:
        """See `flambeau.nn.attention`. Raises ValueError for a context or shapes that do not fit."""
        near, far = (None, None) if cache is None else cache
        y, aux = self.local(x, context, mask, near)
        return y + self.columns(x, context, mask, far)[0], aux
