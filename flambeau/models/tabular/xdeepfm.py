"""xDeepFM: the compressed interaction network (Lian et al., KDD 2018)."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float, Int
from torch import Tensor, nn

from flambeau.data.clicks.fields import FieldSchema
from flambeau.models.tabular.logistic_regression import LogisticRegression
from flambeau.nn.fields.interactions import CompressedInteraction, tower


class XDeepFM(nn.Module):
    """Logistic regression, a compressed interaction network and a perceptron, their logits added (equation 9).

    Args:
        schema: fitted fields of the records.
        dim: length of the embedded fields.
        maps: feature maps of the compressed interaction network.
        mlp: widths of the perceptron; None leaves it out (CIN in the AutoInt paper).
        dropout: rate in the perceptron.
    """

    def __init__(
        self,
        schema: FieldSchema,
        dim: int = 16,
        maps: Sequence[int] = (32, 32),
        mlp: Sequence[int] | None = (128, 128),
        dropout: float = 0.0,
    ):
        super().__init__()
        self.linear = LogisticRegression(schema)
        self.embedding = schema.embedding(dim)
        self.interaction = CompressedInteraction(len(schema.fields), maps)
        self.output = nn.Linear(self.interaction.out_features, 1, bias=False)
        self.mlp = None if mlp is None else tower(len(schema.fields) * dim, mlp, dropout=dropout)

    def forward(self, ids: Int[Tensor, "batch slots"], values: Float[Tensor, "batch slots"]) -> Float[Tensor, " batch"]:
        """Logits of a click."""
        embedded = self.embedding(ids, values)
        logit = self.linear(ids, values) + self.output(self.interaction(embedded)).squeeze(1)
        return logit if self.mlp is None else logit + self.mlp(embedded.flatten(1)).squeeze(1)
