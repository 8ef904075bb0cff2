"""Factorisation machine (Rendle, ICDM 2010)."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor, nn

from flambeau.data.clicks.fields import FieldSchema
from flambeau.models.tabular.logistic_regression import LogisticRegression
from flambeau.nn.fields.interactions import bi_interaction


class FactorizationMachine(nn.Module):
    """Logistic regression plus the inner products of all pairs of embedded fields (equation 1).

    Args:
        schema: fitted fields of the records.
        dim: length of the embedded fields.
    """

    def __init__(self, schema: FieldSchema, dim: int = 16):
        super().__init__()
        self.linear = LogisticRegression(schema)
        self.embedding = schema.embedding(dim)

    def forward(self, ids: Int[Tensor, "batch slots"], values: Float[Tensor, "batch slots"]) -> Float[Tensor, " batch"]:
        """Logits of a click."""
        return self.linear(ids, values) + bi_interaction(self.embedding(ids, values)).sum(1)
