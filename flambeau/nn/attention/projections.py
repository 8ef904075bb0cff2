"""What all attention layers share: projections to heads and back, and the checks of their inputs."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn


class Projections(nn.Module):
    """Queries, keys and values of several heads, and the way back.

    dim: channels of the layer. head_dim: dim / heads if None. shared_qk: one projection gives queries and keys.
    qk_norm: LayerNorm queries and keys, without scale and bias, onto the sphere of radius sqrt(head_dim).
    Raises ValueError when heads do not divide dim and head_dim is not given.
    """

    def __init__(
        self, dim: int, heads: int, head_dim: int | None = None, *, shared_qk: bool = False, qk_norm: bool = False
    ):
        super().__init__()
        if heads < 1:
            raise ValueError(f"heads must be at least 1, got {heads}")
        if head_dim is None and dim % heads:
            raise ValueError(f"dim must be divisible by heads, got {dim} and {heads}; or give head_dim")
        self.dim, self.heads, self.head_dim = dim, heads, dim // heads if head_dim is None else head_dim
        self.qk_norm = qk_norm
        inner = heads * self.head_dim
        self.query = nn.Linear(dim, inner, bias=False)
        self.key = None if shared_qk else nn.Linear(dim, inner, bias=False)
        self.value = nn.Linear(dim, inner, bias=False)
        self.out = nn.Linear(inner, dim, bias=False)

    def forward(
        self, x: Float[Tensor, "batch time dim"], context: Float[Tensor, "batch keytime dim"] | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries of x, keys and values of the context (x without one), [batch, heads, time, head_dim]."""
        source = x if context is None else context
        queries = self._directed(self._heads(self.query(x)))
        keys = queries if self.key is None else self._directed(self._heads(self.key(source)))
        return queries, keys, self._heads(self.value(source))

    def merge(self, y: Float[Tensor, "batch heads time head_dim"]) -> Float[Tensor, "batch time dim"]:
        """The output projection of all heads side by side."""
        return self.out(y.transpose(1, 2).flatten(2))

    def _directed(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:]) if self.qk_norm else x

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, self.head_dim)).transpose(1, 2)


def check_inputs(
    x: Float[Tensor, "batch time dim"],
    dim: int,
    mask: Bool[Tensor, "batch time"] | None = None,
    context: Float[Tensor, "batch keytime dim"] | None = None,
    context_mask: Bool[Tensor, "batch keytime"] | None = None,
    *,
    cross: bool = False,
) -> None:
    """Raises ValueError naming the argument of an attention layer that does not fit."""
    if x.ndim != 3 or x.shape[2] != dim or not x.shape[1]:
        raise ValueError(f"x must be [batch, time, {dim}] with at least one token, got {list(x.shape)}")
    if cross and context is None:
        raise ValueError("context is missing: the layer was built with cross=True")
    if not cross and context is not None:
        raise ValueError("context was given to a layer built with cross=False")
    if context is not None and (context.ndim != 3 or context.shape[0] != x.shape[0] or context.shape[2] != dim):
        raise ValueError(f"context must be [{x.shape[0]}, keytime, {dim}], got {list(context.shape)}")
    for name, given, of in (("mask", mask, x), ("context_mask", context_mask, context)):
        if given is not None and (of is None or given.shape != of.shape[:2]):
            expected = "no mask without context" if of is None else f"[{of.shape[0]}, {of.shape[1]}]"
            raise ValueError(f"{name} must be {expected}, got {list(given.shape)}")
