"""AutoInt: click-through rates from stacked self-attention over the fields of a record (Song et al., CIKM 2019)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from flambeau.data.clicks.fields import FieldSchema
from flambeau.nn.fields.interacting import InteractingLayer
from flambeau.nn.fields.interactions import tower


class AutoInt(nn.Module):
    """Embedded fields, interacting layers, and a linear map of all fields' vectors to one logit.

    The network takes ``schema.encode(frame)``, so ``model(*schema.encode(frame))``.

    Args:
        schema: fitted fields of the records.
        dim: length of the embedded fields.
        layers: interacting layers; none leaves a linear model of the embeddings.
        heads: of each layer.
        width: of each layer, over all heads.
        residual: see :class:`~flambeau.nn.fields.interacting.InteractingLayer`.
        variant: likewise.
        mlp: widths of a perceptron beside the layers whose logit is added: AutoInt+ (section 5.5 has 400, 400).
        dropout: rates on attention weights, embeddings and the perceptron's layers.
        batch_norm: in the perceptron.
        sparse: sparse gradients of the embeddings.

    Raises:
        ValueError: width not divisible by heads, an unknown variant, a dropout that is not three rates.
    """

    def __init__(
        self,
        schema: FieldSchema,
        dim: int = 16,
        layers: int = 3,
        heads: int = 2,
        width: int = 64,
        *,
        residual: bool = True,
        variant: Literal["paper", "repo"] = "repo",
        mlp: Sequence[int] | None = None,
        dropout: tuple[float, float, float] = (0.0, 0.0, 0.0),
        batch_norm: bool = False,
        sparse: bool = False,
    ):
        super().__init__()
        if len(dropout) != 3:
            raise ValueError(f"dropout must be three rates (attention, embeddings, perceptron), got {dropout}")
        attention_dropout, embedding_dropout, mlp_dropout = dropout
        fields = len(schema.fields)
        self.embedding = schema.embedding(dim, sparse=sparse)
        self.dropout = nn.Dropout(embedding_dropout)
        widths = [dim, *[width] * layers]
        self.layers = nn.ModuleList(
            InteractingLayer(before, after, heads, variant=variant, residual=residual, dropout=attention_dropout)
            for before, after in zip(widths, widths[1:])
        )
        self.output = nn.Linear(fields * widths[-1], 1)
        self.mlp = None if mlp is None else tower(fields * dim, mlp, dropout=mlp_dropout, batch_norm=batch_norm)

    def forward(self, ids: Int[Tensor, "batch slots"], values: Float[Tensor, "batch slots"]) -> Float[Tensor, " batch"]:
        """Logits of a click."""
        embedded = self.dropout(self.embedding(ids, values))
        x = embedded
        for layer in self.layers:
            x = layer(x)
        logit = self.output(x.flatten(1))
        if self.mlp is not None:
            logit = logit + self.mlp(embedded.flatten(1))
        return logit.squeeze(1)

    def attention(
        self, ids: Int[Tensor, "batch slots"], values: Float[Tensor, "batch slots"]
    ) -> Float[Tensor, "batch layers heads fields fields"]:
        """The attention weights of every layer; each row sums to 1."""
        x = self.dropout(self.embedding(ids, values))
        weights = []
        for layer in self.layers:
            x, attention = layer.with_attention(x)
            weights.append(attention)
        return torch.stack(weights, 1)


class AutoIntPlus(AutoInt):
    """AutoInt with a perceptron of 400 and 400 beside it (AutoInt+, section 5.5). Arguments are those of AutoInt."""

    def __init__(
        self,
        schema: FieldSchema,
        dim: int = 16,
        layers: int = 3,
        heads: int = 2,
        width: int = 64,
        *,
        residual: bool = True,
        variant: Literal["paper", "repo"] = "repo",
        mlp: Sequence[int] = (400, 400),
        dropout: tuple[float, float, float] = (0.0, 0.0, 0.5),
        batch_norm: bool = False,
        sparse: bool = False,
    ):
        super().__init__(
            schema, dim, layers, heads, width, residual=residual, variant=variant, mlp=mlp, dropout=dropout,
            batch_norm=batch_norm, sparse=sparse,
        )  # fmt: skip
