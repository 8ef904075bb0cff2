"""What models of token grids have in common: their likelihood, and which input they accept."""

from __future__ import annotations

import math

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from flambeau.nn.order import Order


class GridModel(nn.Module):
    """``forward(tokens, condition) -> logits [batch, *grid, vocab]`` of every cell, given those of earlier groups.

    vocab: tokens. order: the groups in which cells are generated. condition: the part that embeds a condition.
    """

    vocab: int
    order: Order
    condition: nn.Module

    @property
    def grid(self) -> tuple[int, ...]:
        return self.order.grid

    def loss(self, tokens: Int[Tensor, "batch ..."], condition: Tensor | None = None) -> Float[Tensor, ""]:
        """Mean cross entropy in nats a token, the training loss."""
        return F.cross_entropy(self(tokens, condition).flatten(0, -2), tokens.flatten())

    def nll(self, tokens: Int[Tensor, "batch ..."], condition: Tensor | None = None) -> Float[Tensor, " batch"]:
        """-log2 p(tokens | condition), in bits a sample: exact, as the model is normalised."""
        logits = self(tokens, condition).flatten(1, -2)
        nats = F.cross_entropy(logits.transpose(1, 2), tokens.flatten(1), reduction="none")
        return nats.sum(1) / math.log(2)

    def check_tokens(self, tokens: Int[Tensor, "batch ..."]) -> None:
        """Raises ValueError for another grid or tokens outside the vocabulary."""
        if tokens.shape[1:] != self.grid:
            raise ValueError(f"tokens must be [batch, {', '.join(map(str, self.grid))}], got {list(tokens.shape)}")
        if tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < self.vocab:
            raise ValueError(f"tokens must lie in 0..{self.vocab - 1}, got {int(tokens.min())}..{int(tokens.max())}")

    def embed_condition(self, condition: Tensor | None, batch: int) -> Float[Tensor, "batch conditions width"]:
        """Condition tokens; None is the null condition. Raises ValueError for another number of rows."""
        condition = self.condition.null(batch) if condition is None else condition
        if len(condition) != batch:
            raise ValueError(f"condition must have {batch} rows like the tokens, got {len(condition)}")
        return self.condition(condition)


def initialise(module: nn.Module) -> None:
    """N(0, 0.02) for weights and embeddings, zero for biases."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
