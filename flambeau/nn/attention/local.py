"""Attention to the neighbourhood, in blocks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from flambeau.nn.attention.projections import Projections, check_inputs


class LocalCache:
    """The last two blocks of keys and values in a ring, allocated from the first token written."""

    def __init__(self, batch: int, heads: int, block: int):
        if batch < 1:
            raise ValueError(f"batch must be at least 1, got {batch}")
        self.batch, self.heads, self.block, self.length = batch, heads, block, 0
        self.keys: Tensor | None = None
        self.values: Tensor | None = None
        self.held: Tensor | None = None  # [batch, 2 block], False where nothing or padding was written

    def append(self, keys: Tensor, values: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Write one token; returns the ring and which of its slots hold a token."""
        ring = 2 * self.block
        if self.keys is None or self.values is None or self.held is None:
            if keys.shape[:2] != (self.batch, self.heads):
                raise ValueError(f"cache has [batch, heads] {[self.batch, self.heads]}, got {list(keys.shape[:2])}")
            self.keys = keys.new_zeros(self.batch, self.heads, ring, keys.shape[3])
            self.values = values.new_zeros(self.batch, self.heads, ring, values.shape[3])
            self.held = torch.zeros(self.batch, ring, dtype=torch.bool, device=keys.device)
        slot = self.length % ring
        self.keys[:, :, slot], self.values[:, :, slot] = keys[:, :, 0], values[:, :, 0]
        self.held[:, slot] = True if mask is None else mask
        self.length += 1
        return self.keys, self.values, self.held


class LocalAttention(nn.Module):
    """Attention inside a block and to the block before it (and after it, if not causal), O(T block).

    A learned bias by distance tells the order. As the local heads of the Routing Transformer (arXiv 2003.05997) and of
    the Image Transformer's 1-D blocks (arXiv 1802.05751).

    Args:
        dim, heads: of the layer; head_dim is dim / heads if None.
        block: tokens per block; a token sees `block` to 2 `block` - 1 earlier ones.
        causal: no token sees a later one.

    Raises:
        ValueError: block below 1, or heads do not divide dim.
    """

    def __init__(self, dim: int, heads: int, block: int, causal: bool = True, *, head_dim: int | None = None):
        super().__init__()
        if block < 1:
            raise ValueError(f"block must be at least 1, got {block}")
        self.dim, self.heads, self.block, self.causal = dim, heads, block, causal
        self.projections = Projections(dim, heads, head_dim)
        self.distance_bias = nn.Parameter(torch.zeros(heads, 4 * block - 1))  # key position - query position, centred

    def new_cache(self, batch: int, capacity: int | None = None) -> LocalCache:
        """For decoding; it holds two blocks whatever the length."""
        return LocalCache(batch, self.heads, self.block)

    def forward(
        self,
        x: Float[Tensor, "batch time dim"],
        context: None = None,
        mask: Bool[Tensor, "batch time"] | None = None,
        cache: LocalCache | None = None,
    ) -> tuple[Float[Tensor, "batch time dim"], Float[Tensor, ""]]:
        """See `flambeau.nn.attention`; there is no cross-attention by distance. Raises ValueError for a context, shapes
        that do not fit, or a cache of a layer that is not causal."""
        check_inputs(x, self.dim, mask, context)
        queries, keys, values = self.project(x)
        if cache is None:
            y, aux = self.attend(queries, keys, values, mask)
            return self.projections.merge(y), aux
        if not self.causal:
            raise ValueError("cache: only a causal layer decodes token by token")
        if cache.length == 0 and x.shape[1] > 1:
            y, _ = self.attend(queries, keys, values, mask)
            start = max(0, x.shape[1] - 2 * self.block)
            cache.length = start
            for t in range(start, x.shape[1]):
                cache.append(keys[:, :, t : t + 1], values[:, :, t : t + 1], None if mask is None else mask[:, t])
        else:
            steps = []
            for t in range(x.shape[1]):
                query, key, value = (part[:, :, t : t + 1] for part in (queries, keys, values))
                steps.append(self._step(query, key, value, None if mask is None else mask[:, t], cache))
            y = torch.cat(steps, 2)
        return self.projections.merge(y), x.new_zeros(())

    def project(self, x: Tensor, context: None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, [batch, heads, time, head_dim]."""
        return self.projections(x)

    def attend(
        self,
        queries: Float[Tensor, "batch heads time head_dim"],
        keys: Float[Tensor, "batch heads time head_dim"],
        values: Float[Tensor, "batch heads time value_dim"],
        mask: Bool[Tensor, "batch time"] | None = None,
    ) -> tuple[Float[Tensor, "batch heads time value_dim"], Float[Tensor, ""]]:
        """Attention of every block to its neighbourhood."""
        batch, _, time, _ = queries.shape
        block, device = self.block, queries.device
        padding = -time % block
        after = 0 if self.causal else block
        blocks = F.pad(queries, (0, 0, 0, padding)).unflatten(2, (-1, block))
        span = 2 * block + after
        near_keys, near_values = (
            F.pad(x, (0, 0, block, padding + after)).unfold(2, span, block).transpose(3, 4) for x in (keys, values)
        )
        held = torch.ones(batch, time, dtype=torch.bool, device=device) if mask is None else mask
        near = F.pad(held, (block, padding + after)).unfold(1, span, block)[:, None, :, None]
        ahead = torch.arange(span, device=device) - block - torch.arange(block, device=device)[:, None]
        visible = near & (ahead <= 0) if self.causal else near
        bias = self.distance_bias[:, ahead + 2 * block - 1]
        logits = (blocks * queries.shape[-1] ** -0.5) @ near_keys.mT + bias[:, None]
        logits = logits.masked_fill(~visible, torch.finfo(logits.dtype).min)
        weights = logits.softmax(-1) if mask is None else logits.softmax(-1).masked_fill(~visible, 0)
        y = (weights @ near_values).flatten(2, 3)[:, :, :time]
        return y, queries.new_zeros(())

    def _step(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, cache: LocalCache) -> Tensor:
        position = cache.length
        keys, values, held = cache.append(key, value, mask)
        slots = torch.arange(2 * self.block, device=query.device)
        ago = (position - slots) % (2 * self.block)
        seen = (position - ago >= (position // self.block - 1) * self.block) & (ago <= position)
        logits = (query * query.shape[-1] ** -0.5) @ keys.mT + self.distance_bias[:, 2 * self.block - 1 - ago][:, None]
        weights = logits.masked_fill(~(held & seen)[:, None, None], float("-inf")).softmax(-1).nan_to_num()
        return weights @ values
