"""Attention to everything: the baseline of every sparse kind."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from flambeau.nn.attention.projections import Projections, check_inputs
from flambeau.nn.kv_cache import KVCache


class DenseAttention(nn.Module):
    """Multi-head attention over all tokens (Vaswani et al. 2017, arXiv 1706.03762), O(T^2).

    Args:
        dim, heads: of the layer; head_dim is dim / heads if None.
        causal: no token sees a later one.
        cross: attend to a context.
        shared_qk, qk_norm: see `flambeau.nn.attention.projections.Projections`.
        scale: of the logits; 1 / sqrt(head_dim) if None.
        mask_self: a token takes itself only if it sees nothing else (of use with shared queries and keys).

    Raises:
        ValueError: heads do not divide dim, or shared_qk or mask_self with cross.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        causal: bool = True,
        cross: bool = False,
        *,
        head_dim: int | None = None,
        shared_qk: bool = False,
        qk_norm: bool = False,
        scale: float | None = None,
        mask_self: bool = False,
    ):
        super().__init__()
        if cross and (shared_qk or mask_self):
            raise ValueError("shared_qk and mask_self need queries and keys of one sequence, got cross=True")
        self.dim, self.causal, self.cross = dim, causal and not cross, cross
        self.scale, self.mask_self = scale, mask_self
        self.projections = Projections(dim, heads, head_dim, shared_qk=shared_qk, qk_norm=qk_norm)

    def new_cache(self, batch: int, capacity: int) -> KVCache:
        """For decoding up to `capacity` tokens (a cross layer keeps its context outside: pass it each time)."""
        return KVCache(1, batch, capacity)

    def forward(
        self,
        x: Float[Tensor, "batch time dim"],
        context: Float[Tensor, "batch keytime dim"] | None = None,
        mask: Bool[Tensor, "batch time"] | None = None,
        cache: KVCache | None = None,
        context_mask: Bool[Tensor, "batch keytime"] | None = None,
    ) -> tuple[Float[Tensor, "batch time dim"], Float[Tensor, ""]]:
        """See `flambeau.nn.attention`. Raises ValueError for shapes that do not fit, or a mask beside a cache."""
        check_inputs(x, self.dim, mask, context, context_mask, cross=self.cross)
        queries, keys, values = self.project(x, context)
        if cache is None or self.cross:
            y, aux = self.attend(queries, keys, values, mask, context_mask)
            return self.projections.merge(y), aux
        if mask is not None:
            raise ValueError("mask: padding cannot be cached by DenseAttention; decode rows of equal length")
        append = cache.begin(x.shape[1], x.device)
        keys, values = cache.write(0, keys, values, append)
        cache.commit(append)
        visible = append.mask
        if self.mask_self:
            visible = self._visible(append.positions[0], keys.shape[2])
        causal = append.causal and visible is None
        y = F.scaled_dot_product_attention(queries, keys, values, attn_mask=visible, is_causal=causal, scale=self.scale)
        return self.projections.merge(y), x.new_zeros(())

    def project(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, [batch, heads, time, head_dim]."""
        return self.projections(x, context)

    def attend(
        self,
        queries: Float[Tensor, "batch heads time head_dim"],
        keys: Float[Tensor, "batch heads keytime head_dim"],
        values: Float[Tensor, "batch heads keytime value_dim"],
        mask: Bool[Tensor, "batch time"] | None = None,
        key_mask: Bool[Tensor, "batch keytime"] | None = None,
    ) -> tuple[Float[Tensor, "batch heads time value_dim"], Float[Tensor, ""]]:
        """Scaled dot-product attention. `key_mask` is `mask` unless the layer is a cross layer."""
        key_mask = key_mask if self.cross else mask
        visible = None
        if key_mask is not None or self.mask_self:
            rows = torch.arange(queries.shape[2], device=queries.device)
            visible = self._visible(rows, keys.shape[2], key_mask)
        causal = self.causal and visible is None
        y = F.scaled_dot_product_attention(queries, keys, values, attn_mask=visible, is_causal=causal, scale=self.scale)
        return (y if key_mask is None else y.nan_to_num()), queries.new_zeros(())

    def _visible(self, rows: Tensor, span: int, key_mask: Tensor | None = None) -> Tensor:
        columns = torch.arange(span, device=rows.device)
        own = columns == rows[:, None]
        visible = columns <= rows[:, None] if self.causal else torch.ones_like(own)
        visible = visible[None, None] if key_mask is None else visible & key_mask[:, None, None]
        if self.mask_self:
            visible = visible & ~own
            visible = visible | (own & ~visible.any(-1, keepdim=True))
        return visible
