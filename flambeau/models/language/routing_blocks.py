"""Blocks of the Routing Transformer: local and routing heads, a gated feed-forward, pre-norm."""

from __future__ import annotations

from typing import Any, Literal

import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from flambeau.nn.attention import LocalAttention, LocalRoutingAttention, RoutingAttention


class GEGLU(nn.Module):
    """Feed-forward gated by a GELU (Shazeer 2020, arXiv 2002.05202). hidden: channels of the gated product."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.gate_and_value, self.out = nn.Linear(dim, 2 * hidden), nn.Linear(hidden, dim)

    def forward(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        gate, value = self.gate_and_value(x).chunk(2, -1)
        return self.out(F.gelu(gate) * value)


class RoutingBlock(nn.Module):
    """Self-attention, cross-attention if there is one, and feed-forward, each added to the residual stream.

    attention, cross: layers of `flambeau.nn.attention`. hidden: channels of the feed-forward.
    """

    def __init__(self, dim: int, attention: nn.Module, hidden: int, dropout: float, cross: nn.Module | None = None):
        super().__init__()
        self.attention_norm, self.attention = nn.LayerNorm(dim), attention
        self.cross_norm = None if cross is None else nn.LayerNorm(dim)
        self.cross = cross
        self.feed_forward_norm, self.feed_forward = nn.LayerNorm(dim), GEGLU(dim, hidden)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Float[Tensor, "batch time dim"],
        mask: Bool[Tensor, "batch time"] | None = None,
        cache: tuple[Any, Any] | None = None,
        memory: Float[Tensor, "batch memorytime dim"] | None = None,
        memory_mask: Bool[Tensor, "batch memorytime"] | None = None,
    ) -> Float[Tensor, "batch time dim"]:
        own, crossing = (None, None) if cache is None else cache
        x = x + self.dropout(self.attention(self.attention_norm(x), mask=mask, cache=own)[0])
        if self.cross is not None and self.cross_norm is not None:
            attended = self.cross(self.cross_norm(x), memory, mask=mask, cache=crossing, context_mask=memory_mask)[0]
            x = x + self.dropout(attended)
        return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))


class RoutingStack(nn.Module):
    """Blocks of which the top `routing_layers` have routing heads, and a last norm; the others' heads are all local.

    Args:
        dim, depth: channels and blocks.
        local_heads, routing_heads: of a block with routing; one of them may be 0.
        num_clusters, window: of routing heads, `local_window`: block of local heads.
        routing_layers: blocks with routing heads, counted from the top; None is all.
        hidden: channels of the feed-forward; 4 dim if None.
        dropout: of what each part adds to the residual stream.
        causal: no token sees a later one.
        cross: blocks also attend to a memory, by routing heads that select causally.
        selection, decay, commitment, scale, mask_self: see `RoutingAttention`.
        rank_bias: routing heads learn a bias by distance inside the cluster (causal only). Without it they know no
            order, but run in the fused kernel on a GPU.

    Raises:
        ValueError: no heads at all, routing_layers beyond depth, or sizes that the layers refuse.
    """

    def __init__(
        self,
        dim: int = 512,
        depth: int = 12,
        local_heads: int = 4,
        routing_heads: int = 4,
        num_clusters: int = 16,
        window: int = 512,
        local_window: int = 256,
        routing_layers: int | None = None,
        hidden: int | None = None,
        dropout: float = 0.0,
        *,
        causal: bool = True,
        cross: bool = False,
        selection: Literal["causal", "balanced"] | None = None,
        decay: float = 0.999,
        commitment: float = 1e-4,
        scale: float | None = None,
        mask_self: bool = False,
        rank_bias: bool = True,
    ):
        super().__init__()
        heads = local_heads + routing_heads
        routing_layers = depth if routing_layers is None else routing_layers
        if local_heads < 0 or routing_heads < 0 or heads < 1:
            raise ValueError(f"local_heads and routing_heads must be 0 or more, got {local_heads} and {routing_heads}")
        if not 0 <= routing_layers <= depth:
            raise ValueError(f"routing_layers must lie in 0..depth ({depth}), got {routing_layers}")
        hidden = 4 * dim if hidden is None else hidden
        shared: dict[str, Any] = dict(decay=decay, commitment=commitment, scale=scale)
        own: dict[str, Any] = dict(selection=selection, mask_self=mask_self, rank_bias=causal and rank_bias, **shared)

        def attention(routes: bool) -> nn.Module:
            if not routes or not routing_heads:
                return LocalAttention(dim, heads, local_window, causal)
            if not local_heads:
                return RoutingAttention(dim, heads, num_clusters, window, causal, **own)
            return LocalRoutingAttention(
                dim, local_heads, routing_heads, local_window, num_clusters, window, causal, **own
            )

        def crossing() -> nn.Module | None:
            if not cross:
                return None
            return RoutingAttention(dim, heads, num_clusters, window, cross=True, selection="causal", **shared)

        self.blocks = nn.ModuleList(
            RoutingBlock(dim, attention(layer >= depth - routing_layers), hidden, dropout, crossing())
            for layer in range(depth)
        )
        self.norm = nn.LayerNorm(dim)

    def new_cache(self, batch: int) -> list[tuple[Any, Any]]:
        """One for every block; their size does not depend on the length unless selection is balanced."""
        caches = []
        for block in self.blocks:
            crossing = None if block.cross is None else block.cross.new_cache(batch)
            caches.append((block.attention.new_cache(batch), crossing))
        return caches

    def forward(
        self,
        x: Float[Tensor, "batch time dim"],
        mask: Bool[Tensor, "batch time"] | None = None,
        cache: list[tuple[Any, Any]] | None = None,
        memory: Float[Tensor, "batch memorytime dim"] | None = None,
        memory_mask: Bool[Tensor, "batch memorytime"] | None = None,
    ) -> Float[Tensor, "batch time dim"]:
        for layer, block in enumerate(self.blocks):
            x = block(x, mask, None if cache is None else cache[layer], memory, memory_mask)
        return self.norm(x)


def initialise(module: nn.Module) -> None:
    """Normal weights of standard deviation 0.02, zero biases; for ``model.apply``."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
