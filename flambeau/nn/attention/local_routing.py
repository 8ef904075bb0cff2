"""Some heads look near, the others by content."""

from __future__ import annotations

from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor, nn

from flambeau.nn.attention.clusters import BucketCache
from flambeau.nn.attention.local import LocalAttention, LocalCache
from flambeau.nn.attention.routing import History, RoutingAttention


class LocalRoutingAttention(nn.Module):
    """The head mix of the Routing Transformer (Roy et al. 2020, arXiv 2003.05997, section 4.2).

    Both kinds of heads have their own output projection, and their sum is the projection of all heads side by side.

    Args:
        dim: of the layer; each of the local_heads + routing_heads has dim / heads channels.
        local_heads, routing_heads: at least one of each; use `LocalAttention` or `RoutingAttention` alone otherwise.
        local_window: block of the local heads.
        num_clusters, window: of the routing heads.
        causal: no token sees a later one.
        routing: further arguments of `RoutingAttention` (selection, decay, commitment, ...).

    Raises:
        ValueError: no head of a kind, or heads do not divide dim.
    """

    def __init__(
        self,
        dim: int,
        local_heads: int,
        routing_heads: int,
        local_window: int,
        num_clusters: int,
        window: int,
        causal: bool = True,
        **routing: Any,
    ):
        super().__init__()
        heads = local_heads + routing_heads
        if local_heads < 1 or routing_heads < 1:
            raise ValueError(f"local_heads and routing_heads must be at least 1, got {local_heads} and {routing_heads}")
        if dim % heads:
            raise ValueError(f"dim must be divisible by the {heads} heads, got {dim}")
        self.local = LocalAttention(dim, local_heads, local_window, causal, head_dim=dim // heads)
        self.routing = RoutingAttention(
            dim, routing_heads, num_clusters, window, causal, head_dim=dim // heads, **routing
        )

    def new_cache(self, batch: int, capacity: int | None = None) -> tuple[LocalCache, BucketCache | History]:
        """For decoding."""
        return self.local.new_cache(batch), self.routing.new_cache(batch)

    def forward(
        self,
        x: Float[Tensor, "batch time dim"],
        context: None = None,
        mask: Bool[Tensor, "batch time"] | None = None,
        cache: tuple[LocalCache, BucketCache | History] | None = None,
    ) -> tuple[Float[Tensor, "batch time dim"], Float[Tensor, ""]]:
        """See `flambeau.nn.attention`. Raises ValueError for a context or shapes that do not fit."""
        near, far = (None, None) if cache is None else cache
        y, _ = self.local(x, context, mask, near)
        routed, aux = self.routing(x, context, mask, far)
        return y + routed, aux
