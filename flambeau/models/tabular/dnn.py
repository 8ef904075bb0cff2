"""A perceptron over embedded fields: the plain deep network of click-through prediction."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float, Int
from torch import Tensor, nn

from flambeau.data.clicks.fields import FieldSchema
from flambeau.nn.fields.interactions import tower


class DNN(nn.Module):
    """Embedded fields side by side, through a perceptron.

    Args:
        schema: fitted fields of the records.
        dim: length of the embedded fields.
        mlp: widths of the perceptron.
        dropout: rate in it.
        batch_norm: in it.
        sparse: sparse gradients of the embeddings.
    """

    def __init__(
        self,
        schema: FieldSchema,
        dim: int = 16,
        mlp: Sequence[int] = (128, 128),
        dropout: float = 0.0,
        batch_norm: bool = False,
        sparse: bool = False,
    ):
        super().__init__()
        self.embedding = schema.embedding(dim, sparse=sparse)
        self.mlp = tower(len(schema.fields) * dim, mlp, dropout=dropout, batch_norm=batch_norm)

    def forward(self, ids: Int[Tensor, "batch slots"], values: Float[Tensor, "batch slots"]) -> Float[Tensor, " batch"]:
        """Logits of a click."""
        return self.mlp(self.embedding(ids, values).flatten(1)).squeeze(1)
