"""Neural factorisation machine (He and Chua, SIGIR 2017)."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float, Int
from torch import Tensor, nn

from flambeau.data.clicks.fields import FieldSchema
from flambeau.models.tabular.logistic_regression import LogisticRegression
from flambeau.nn.fields.interactions import bi_interaction, tower


class NFM(nn.Module):
    """Logistic regression plus a perceptron over the pooled products of pairs (equation 2).

    Args:
        schema: fitted fields of the records.
        dim: length of the embedded fields.
        mlp: widths of the perceptron.
        dropout: rate in the perceptron.
    """

    def __init__(self, schema: FieldSchema, dim: int = 16, mlp: Sequence[int] = (64,), dropout: float = 0.0):
        super().__init__()
        self.linear = LogisticRegression(schema)
        self.embedding = schema.embedding(dim)
        self.norm = nn.BatchNorm1d(dim)  # the products of small vectors are tiny; section 3.2.2
        self.mlp = tower(dim, mlp, dropout=dropout)

    def forward(self, ids: Int[Tensor, "batch slots"], values: Float[Tensor, "batch slots"]) -> Float[Tensor, " batch"]:
        """Logits of a click."""
        pooled = self.norm(bi_interaction(self.embedding(ids, values)))
        return self.linear(ids, values) + self.mlp(pooled).squeeze(1)
