"""GPT-2."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from flambeau.models.language.transformer import Norm, TransformerBlock, check_sizes, initialise


class TokenCrossEntropy(nn.Module):
    """Cross entropy of every token, [batch, time]; 0 where the target is -100.

    A module of the model so that a parallel plan can put one here that never gathers the vocabulary.
    """

    def forward(
        self, logits: Float[Tensor, "batch time vocab"], targets: Int[Tensor, "batch time"]
    ) -> Float[Tensor, "batch time"]:
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="none").view(
            targets.shape
        )


class GPT(nn.Module):
    """Causal transformer with learned positions and a tied output embedding (Radford et al. 2019, GPT-2).

    Written for one device; `flambeau.training.parallel` splits it from outside.

    vocab: tokens. length: longest sequence. hidden: width of the MLP, 4 times the width by default. norm: where the
    LayerNorms stand, see `TransformerBlock`; "pre" adds one before the head. tie: the output matrix is the embedding.
    Raises ValueError when sizes do not divide or lie out of range.
    """

    def __init__(
        self,
        vocab: int,
        length: int = 1024,
        width: int = 768,
        depth: int = 12,
        heads: int = 12,
        *,
        hidden: int | None = None,
        dropout: float = 0.1,
        norm: Norm = "pre",
        tie: bool = True,
    ):
        super().__init__()
        check_sizes(vocab, length, width, depth, heads, dropout, norm)
        self.vocab, self.length = vocab, length
        self.embedding = nn.Embedding(vocab, width)
        self.position = nn.Embedding(length, width)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            TransformerBlock(width, heads, hidden or 4 * width, causal=True, dropout=dropout, norm=norm)
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width) if norm == "pre" else nn.Identity()
        self.head = nn.Linear(width, vocab, bias=False)
        self.cross_entropy = TokenCrossEntropy()
        initialise(self, depth)
        if tie:
            self.head.weight = self.embedding.weight

    def forward(
        self, tokens: Int[Tensor, "batch time"], positions: Int[Tensor, "batch time"] | None = None
    ) -> Float[Tensor, "batch time vocab"]:
        """Next-token logits. positions: by default 0, 1, ...; a part of a sequence brings its own."""
        if positions is None:
            if tokens.shape[1] > self.length:
                raise ValueError(f"tokens have length {tokens.shape[1]}, the model has {self.length} positions")
            positions = torch.arange(tokens.shape[1], device=tokens.device)[None]
        x = self.dropout(self.embedding(tokens) + self.position(positions))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))

    def token_losses(
        self,
        tokens: Int[Tensor, "batch time"],
        targets: Int[Tensor, "batch time"],
        positions: Int[Tensor, "batch time"] | None = None,
    ) -> Float[Tensor, "batch time"]:
        """Cross entropy (nats) of every target; 0 where it is -100."""
        return self.cross_entropy(self(tokens, positions), targets)
