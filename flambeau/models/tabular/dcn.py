"""Deep & Cross Network (Wang et al., ADKDD 2017)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from flambeau.data.clicks.fields import FieldSchema
from flambeau.nn.fields.interactions import CrossNet, tower


class DCN(nn.Module):
    """A cross network and a perceptron over the same embeddings, their logits added (a linear map of both, eq. 5).

    Args:
        schema: fitted fields of the records.
        dim: length of the embedded fields.
        layers: of the cross network.
        mlp: widths of the perceptron; None leaves the cross network alone (CrossNet in the AutoInt paper).
        dropout: rate in the perceptron.
    """

    def __init__(
        self,
        schema: FieldSchema,
        dim: int = 16,
        layers: int = 3,
        mlp: Sequence[int] | None = (128, 128),
        dropout: float = 0.0,
    ):
        super().__init__()
        size = len(schema.fields) * dim
        self.embedding = schema.embedding(dim)
        self.cross = CrossNet(size, layers)
        self.output = nn.Linear(size, 1)
        self.mlp = None if mlp is None else tower(size, mlp, dropout=dropout)

    def forward(self, ids: Int[Tensor, "batch slots"], values: Float[Tensor, "batch slots"]) -> Float[Tensor, " batch"]:
        """Logits of a click."""
        embedded = self.embedding(ids, values).flatten(1)
        logit: torch.Tensor = self.output(self.cross(embedded))
        if self.mlp is not None:
            logit = logit + self.mlp(embedded)
        return logit.squeeze(1)
