"""The interacting layer of AutoInt: multi-head self-attention over the fields of a record."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


class InteractingLayer(nn.Module):
    """Every field takes up what it attends to in the others (AutoInt, section 4.4, equations 5 to 8).

    ``variant="paper"``: scores are plain inner products of projections without bias, ``out = ReLU(heads + W_res x)``.
    ``variant="repo"``: the authors' program, which made their figures: all projections have a bias and a ReLU, scores
    are divided by ``sqrt(width / heads)``, and a layer norm follows.

    Args:
        in_dim: length of the incoming field vectors.
        width: length of the outgoing ones, over all heads.
        heads: attention heads.
        variant: see above.
        residual: add the projection ``W_res x``.
        dropout: rate on the attention weights (a rate: the authors' arguments are what is *kept*).

    Raises:
        ValueError: width not divisible by heads, an unknown variant, or a dropout outside [0, 1).
    """

    def __init__(
        self,
        in_dim: int,
        width: int = 64,
        heads: int = 2,
        *,
        variant: Literal["paper", "repo"] = "repo",
        residual: bool = True,
        dropout: float = 0.0,
    ):
        super().__init__()
        if heads < 1 or width % heads:
            raise ValueError(f"width must be divisible by heads, got width {width} and heads {heads}")
        if variant not in ("paper", "repo"):
            raise ValueError(f"variant must be 'paper' or 'repo', got {variant!r}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), got {dropout}")
        self.heads, self.variant, self.residual, self.dropout = heads, variant, residual, dropout
        self.width = width
        # Query, key, value and residual projections side by side: one matrix product instead of four.
        self.project = nn.Linear(in_dim, (4 if residual else 3) * width, bias=variant == "repo")
        # Vectors start at a length of about 0.01, where torch's usual epsilon of 1e-5 would be most of the variance.
        self.norm = nn.LayerNorm(width, eps=1e-8) if variant == "repo" else None

    def forward(self, x: Float[Tensor, "batch fields in_dim"]) -> Float[Tensor, "batch fields width"]:
        """The fields' new vectors."""
        q, k, v, rest = self._projections(x)
        rate = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=rate, scale=self._scale)
        return self._combine(mixed, rest)

    def with_attention(
        self, x: Float[Tensor, "batch fields in_dim"]
    ) -> tuple[Float[Tensor, "batch fields width"], Float[Tensor, "batch heads fields fields"]]:
        """The fields' new vectors, and the weights: entry (m, k) is how much field m takes of field k."""
        q, k, v, rest = self._projections(x)
        attention = (q @ k.transpose(-1, -2) * self._scale).softmax(-1)
        return self._combine(F.dropout(attention, self.dropout, self.training) @ v, rest), attention

    @property
    def _scale(self) -> float:
        return 1.0 if self.variant == "paper" else (self.width // self.heads) ** -0.5

    def _projections(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Queries, keys and values [batch, heads, fields, width / heads], and the residual [batch, fields, width]."""
        projected = self.project(x)
        if self.variant == "repo":
            projected = F.relu(projected)
        batch, fields, _ = x.shape
        q, k, v, *rest = projected.split(self.width, dim=-1)
        q, k, v = (part.reshape(batch, fields, self.heads, -1).transpose(1, 2) for part in (q, k, v))
        return q, k, v, rest[0] if rest else None

    def _combine(self, mixed: Tensor, rest: Tensor | None) -> Tensor:
        mixed = mixed.transpose(1, 2).flatten(2)
        mixed = F.relu(mixed if rest is None else mixed + rest)
        return mixed if self.norm is None else self.norm(mixed)


def uniform_attention(layer: InteractingLayer) -> None:
    """Set the queries' projection to zero: every field then attends to all alike. What remains is without interactions.

    Useful to see what attention adds; in the variant ``"paper"`` it leaves each field the mean of all values.
    """
    with torch.no_grad():
        layer.project.weight[: layer.width] = 0
        if layer.project.bias is not None:
            layer.project.bias[: layer.width] = 0
