"""BERT."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from flambeau.models.language.gpt import TokenCrossEntropy
from flambeau.models.language.transformer import Norm, TransformerBlock, check_sizes, initialise


class BERT(nn.Module):
    """Bidirectional transformer with a masked-token and a sentence-order head (Devlin et al. 2019, arXiv 1810.04805).

    Sentence order replaces next-sentence prediction, as in ALBERT (Lan et al. 2020) and in Megatron-LM.

    norm: "post" is the original placement of the LayerNorms, "pre" the one that trains when deep (Shoeybi et al. 2019,
    figure 7); it adds one behind the last block. segments: kinds of token types. The other arguments are `GPT`'s.
    """

    def __init__(
        self,
        vocab: int,
        length: int = 512,
        width: int = 768,
        depth: int = 12,
        heads: int = 12,
        *,
        hidden: int | None = None,
        dropout: float = 0.1,
        norm: Norm = "pre",
        segments: int = 2,
    ):
        super().__init__()
        check_sizes(vocab, length, width, depth, heads, dropout, norm)
        self.vocab, self.length = vocab, length
        self.embedding = nn.Embedding(vocab, width)
        self.position = nn.Embedding(length, width)
        self.segment = nn.Embedding(segments, width)
        self.embedding_norm = nn.LayerNorm(width) if norm == "post" else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            TransformerBlock(width, heads, hidden or 4 * width, causal=False, dropout=dropout, norm=norm)
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width) if norm == "pre" else nn.Identity()
        self.transform = nn.Linear(width, width)
        self.transform_norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocab)
        self.pooler = nn.Linear(width, width)
        self.order = nn.Linear(width, 2)
        self.cross_entropy = TokenCrossEntropy()
        initialise(self, depth)
        self.head.weight = self.embedding.weight

    def encode(
        self,
        tokens: Int[Tensor, "batch time"],
        mask: Bool[Tensor, "batch time"] | None = None,
        segments: Int[Tensor, "batch time"] | None = None,
        positions: Int[Tensor, "batch time"] | None = None,
    ) -> Float[Tensor, "batch time width"]:
        """Hidden states. mask: False for padding. positions: by default 0, 1, ..."""
        if positions is None:
            if tokens.shape[1] > self.length:
                raise ValueError(f"tokens have length {tokens.shape[1]}, the model has {self.length} positions")
            positions = torch.arange(tokens.shape[1], device=tokens.device)[None]
        segments = torch.zeros_like(tokens) if segments is None else segments
        x = self.embedding(tokens) + self.position(positions) + self.segment(segments)
        x = self.dropout(self.embedding_norm(x))
        for block in self.blocks:
            x = block(x, mask)
        return self.norm(x)

    def forward(
        self,
        tokens: Int[Tensor, "batch time"],
        mask: Bool[Tensor, "batch time"] | None = None,
        segments: Int[Tensor, "batch time"] | None = None,
        positions: Int[Tensor, "batch time"] | None = None,
    ) -> tuple[Float[Tensor, "batch time vocab"], Float[Tensor, "batch 2"]]:
        """Logits of every token, and of the sentence order read from the first token."""
        x = self.encode(tokens, mask, segments, positions)
        return self.head(self.transform_norm(F.gelu(self.transform(x)))), self.order(torch.tanh(self.pooler(x[:, 0])))

    def token_losses(
        self,
        tokens: Int[Tensor, "batch time"],
        targets: Int[Tensor, "batch time"],
        mask: Bool[Tensor, "batch time"] | None = None,
        segments: Int[Tensor, "batch time"] | None = None,
        positions: Int[Tensor, "batch time"] | None = None,
    ) -> Float[Tensor, "batch time"]:
        """Cross entropy (nats) of every masked token; 0 where the target is -100."""
        x = self.encode(tokens, mask, segments, positions)
        return self.cross_entropy(self.head(self.transform_norm(F.gelu(self.transform(x)))), targets)
