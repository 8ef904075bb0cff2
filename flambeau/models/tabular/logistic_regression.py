"""Logistic regression on sparse records."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from flambeau.data.clicks.fields import FieldSchema


class LogisticRegression(nn.Module):
    """One weight a category or number, and a bias.

    Args:
        schema: fitted fields of the records.
        sparse: sparse gradients of the weights.
    """

    def __init__(self, schema: FieldSchema, *, sparse: bool = False):
        super().__init__()
        self.weight = schema.embedding(1, sparse=sparse)
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, ids: Int[Tensor, "batch slots"], values: Float[Tensor, "batch slots"]) -> Float[Tensor, " batch"]:
        """Logits of a click."""
        return self.weight(ids, values).sum((1, 2)) + self.bias
