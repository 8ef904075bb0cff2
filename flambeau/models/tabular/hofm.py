"""Higher-order factorisation machine (Blondel et al., NeurIPS 2016)."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from flambeau.data.clicks.fields import FieldSchema
from flambeau.models.tabular.logistic_regression import LogisticRegression
from flambeau.nn.fields.interactions import anova_kernel


class HOFM(nn.Module):
    """Logistic regression plus ANOVA kernels of the orders 2 to `order`, each with embeddings of its own.

    Args:
        schema: fitted fields of the records.
        dim: length of the embedded fields.
        order: the highest; the AutoInt paper compares with 3.

    Raises:
        ValueError: an order below 2.
    """

    def __init__(self, schema: FieldSchema, dim: int = 16, order: int = 3):
        super().__init__()
        if order < 2:
            raise ValueError(f"order must be at least 2, got {order}")
        self.linear = LogisticRegression(schema)
        self.embeddings = nn.ModuleList(schema.embedding(dim) for _ in range(order - 1))

    def forward(self, ids: Int[Tensor, "batch slots"], values: Float[Tensor, "batch slots"]) -> Float[Tensor, " batch"]:
        """Logits of a click."""
        terms = [anova_kernel(embed(ids, values), order).sum(1) for order, embed in enumerate(self.embeddings, 2)]
        return self.linear(ids, values) + torch.stack(terms).sum(0)
