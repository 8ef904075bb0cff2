"""DeepFM: a factorisation machine and a perceptron on the same embeddings (Guo et al., IJCAI 2017)."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float, Int
from torch import Tensor, nn

from flambeau.data.clicks.fields import FieldSchema
from flambeau.models.tabular.logistic_regression import LogisticRegression
from flambeau.nn.fields.interactions import bi_interaction, tower


class DeepFM(nn.Module):
    """The sum of both logits (equation 1).

    Args:
        schema: fitted fields of the records.
        dim: length of the embedded fields.
        mlp: widths of the perceptron.
        dropout: rate in it.
    """

    def __init__(self, schema: FieldSchema, dim: int = 16, mlp: Sequence[int] = (128, 128), dropout: float = 0.0):
        super().__init__()
        self.linear = LogisticRegression(schema)
        self.embedding = schema.embedding(dim)
        self.mlp = tower(len(schema.fields) * dim, mlp, dropout=dropout)

    def forward(self, ids: Int[Tensor, "batch slots"], values: Float[Tensor, "batch slots"]) -> Float[Tensor, " batch"]:
        """Logits of a click."""
        embedded = self.embedding(ids, values)
        machine = self.linear(ids, values) + bi_interaction(embedded).sum(1)
        return machine + self.mlp(embedded.flatten(1)).squeeze(1)
