"""Attentional factorisation machine (Xiao et al., IJCAI 2017)."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor, nn

from flambeau.data.clicks.fields import FieldSchema
from flambeau.models.tabular.logistic_regression import LogisticRegression
from flambeau.nn.fields.interactions import AttentionalPairs


class AFM(nn.Module):
    """Logistic regression plus the attended products of all pairs of embedded fields (equation 6).

    Args:
        schema: fitted fields of the records.
        dim: length of the embedded fields.
        width: of the attention network.
        dropout: rate on the pooled products.
    """

    def __init__(self, schema: FieldSchema, dim: int = 16, width: int = 16, dropout: float = 0.0):
        super().__init__()
        self.linear = LogisticRegression(schema)
        self.embedding = schema.embedding(dim)
        self.pairs = AttentionalPairs(dim, width, dropout)
        self.output = nn.Linear(dim, 1, bias=False)

    def forward(self, ids: Int[Tensor, "batch slots"], values: Float[Tensor, "batch slots"]) -> Float[Tensor, " batch"]:
        """Logits of a click."""
        return self.linear(ids, values) + self.output(self.pairs(self.embedding(ids, values))).squeeze(1)
