"""Deep Crossing: residual units over embedded fields (Shan et al., KDD 2016)."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor, nn

from flambeau.data.clicks.fields import FieldSchema
from flambeau.nn.fields.interactions import ResidualUnit


class DeepCrossing(nn.Module):
    """Embedded fields side by side, residual units, one logit.

    Args:
        schema: fitted fields of the records.
        dim: length of the embedded fields.
        layers: residual units.
        width: hidden width of each.
    """

    def __init__(self, schema: FieldSchema, dim: int = 16, layers: int = 3, width: int = 128):
        super().__init__()
        size = len(schema.fields) * dim
        self.embedding = schema.embedding(dim)
        self.units = nn.Sequential(*[ResidualUnit(size, width) for _ in range(layers)])
        self.output = nn.Linear(size, 1)

    def forward(self, ids: Int[Tensor, "batch slots"], values: Float[Tensor, "batch slots"]) -> Float[Tensor, " batch"]:
        """Logits of a click."""
        return self.output(self.units(self.embedding(ids, values).flatten(1))).squeeze(1)
