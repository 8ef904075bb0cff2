"""The Routing Transformer as a language model and as an encoder-decoder."""

from __future__ import annotations

from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from flambeau.models.language.routing_blocks import RoutingStack, initialise

# Sizes of the published configurations (google-research, routing_transformer/sparse_transformer.py):
# ``RoutingTransformerLM(vocab, **WIKITEXT103)``.
WIKITEXT103: dict[str, Any] = dict(
    dim=1024, depth=14, local_heads=8, routing_heads=8, num_clusters=8, window=512, local_window=256,
    embedding_dim=256, dropout=0.4, token_dropout=0.25,
)  # fmt: skip
ENWIK8: dict[str, Any] = dict(
    dim=1024, depth=12, local_heads=4, routing_heads=4, num_clusters=16, window=512, local_window=256
)
PG19: dict[str, Any] = dict(
    dim=1032, depth=22, local_heads=6, routing_heads=2, num_clusters=16, window=512, local_window=256,
    routing_layers=1, hidden=4096,
)  # fmt: skip


class RoutingTransformerLM(nn.Module):
    """Language model of local and routing heads (Roy et al. 2020, arXiv 2003.05997).

    There are no absolute positions: local heads learn a bias by distance, routing heads by distance inside the cluster.
    With causal selection a sequence can go on for ever, and its cache does not grow. Add ``collect_aux(model)`` of
    `flambeau.nn` to the loss: it pulls queries to their centroids.

    Args:
        vocab: tokens.
        dim, ..., rank_bias: see `RoutingStack`.
        embedding_dim: channels of the token embedding, projected to `dim` (and tied to the output); None is `dim`.
        token_dropout: share of input tokens whose embedding is dropped whole.

    Raises:
        ValueError: sizes that do not fit.
    """

    length: int | None = None

    def __init__(
        self,
        vocab: int,
        dim: int = 512,
        depth: int = 12,
        local_heads: int = 4,
        routing_heads: int = 4,
        num_clusters: int = 16,
        window: int = 512,
        local_window: int = 256,
        routing_layers: int | None = None,
        hidden: int | None = None,
        dropout: float = 0.0,
        *,
        embedding_dim: int | None = None,
        token_dropout: float = 0.0,
        selection: Literal["causal", "balanced"] | None = None,
        decay: float = 0.999,
        commitment: float = 1e-4,
        scale: float | None = None,
        mask_self: bool = False,
        rank_bias: bool = True,
    ):
        super().__init__()
        if vocab < 2:
            raise ValueError(f"vocab must be at least 2, got {vocab}")
        narrow = dim if embedding_dim is None else embedding_dim
        self.vocab = vocab
        self.embedding = nn.Embedding(vocab, narrow)
        self.widen = nn.Identity() if narrow == dim else nn.Linear(narrow, dim, bias=False)
        self.token_dropout = nn.Dropout1d(token_dropout)
        self.stack = RoutingStack(
            dim, depth, local_heads, routing_heads, num_clusters, window, local_window, routing_layers, hidden, dropout,
            selection=selection, decay=decay, commitment=commitment, scale=scale, mask_self=mask_self,
            rank_bias=rank_bias,
        )  # fmt: skip
        self.narrow = nn.Identity() if narrow == dim else nn.Linear(dim, narrow, bias=False)
        self.head = nn.Linear(narrow, vocab, bias=False)
        self.apply(initialise)
        self.head.weight = self.embedding.weight

    def new_cache(self, batch: int, capacity: int | None = None) -> list[tuple[Any, Any]]:
        """An empty cache for `batch` rows, of any length."""
        return self.stack.new_cache(batch)

    def forward(
        self,
        tokens: Int[Tensor, "batch time"],
        *,
        mask: Bool[Tensor, "batch time"] | None = None,
        cache: list[tuple[Any, Any]] | None = None,
        keep: int | None = None,
    ) -> Float[Tensor, "batch kept vocab"]:
        """Next-token logits, of the last `keep` tokens only if given. mask: False on padding. cache: `tokens` follow
        those that it has seen.

        Raises:
            ValueError: tokens of another shape or outside the vocabulary.
        """
        _check_tokens("tokens", tokens, self.vocab)
        x = self.stack(self.widen(self.token_dropout(self.embedding(tokens))), mask, cache)
        return self.head(self.narrow(x if keep is None else x[:, -keep:]))


class RoutingEncoderDecoder(nn.Module):
    """Sequence to sequence: the encoder selects balanced, the decoder and its cross-attention causally.

    A target token attends to the best source tokens of its own cluster, so that nothing depends on later target tokens
    and decoding with a cache equals one pass.

    Args:
        source_vocab, target_vocab: tokens.
        encoder_depth, decoder_depth: blocks.
        dim, ...: see `RoutingStack`.

    Raises:
        ValueError: sizes that do not fit.
    """

    def __init__(
        self,
        source_vocab: int,
        target_vocab: int,
        dim: int = 512,
        encoder_depth: int = 6,
        decoder_depth: int = 6,
        **stack: Any,
    ):
        super().__init__()
        for name, size in (("source_vocab", source_vocab), ("target_vocab", target_vocab)):
            if size < 2:
                raise ValueError(f"{name} must be at least 2, got {size}")
        self.source_vocab, self.target_vocab = source_vocab, target_vocab
        self.source_embedding, self.target_embedding = nn.Embedding(source_vocab, dim), nn.Embedding(target_vocab, dim)
        self.encoder = RoutingStack(dim, encoder_depth, **stack, causal=False)
        self.decoder = RoutingStack(dim, decoder_depth, **stack, cross=True)
        self.head = nn.Linear(dim, target_vocab, bias=False)
        self.apply(initialise)

    def new_cache(self, batch: int) -> list[tuple[Any, Any]]:
        """For `decode`; each block keeps the keys of the first memory it is given."""
        return self.decoder.new_cache(batch)

    def encode(
        self, source: Int[Tensor, "batch sourcetime"], source_mask: Bool[Tensor, "batch sourcetime"] | None = None
    ) -> Float[Tensor, "batch sourcetime dim"]:
        """What the decoder attends to."""
        _check_tokens("source", source, self.source_vocab)
        return self.encoder(self.source_embedding(source), source_mask)

    def decode(
        self,
        target: Int[Tensor, "batch time"],
        memory: Float[Tensor, "batch sourcetime dim"],
        source_mask: Bool[Tensor, "batch sourcetime"] | None = None,
        cache: list[tuple[Any, Any]] | None = None,
    ) -> Float[Tensor, "batch time target_vocab"]:
        """Next-token logits of the target."""
        _check_tokens("target", target, self.target_vocab)
        return self.head(self.decoder(self.target_embedding(target), None, cache, memory, source_mask))

    def forward(
        self,
        source: Int[Tensor, "batch sourcetime"],
        target: Int[Tensor, "batch time"],
        source_mask: Bool[Tensor, "batch sourcetime"] | None = None,
    ) -> Float[Tensor, "batch time target_vocab"]:
        """Next-token logits of the target, given the source. Raises ValueError for tokens outside a vocabulary."""
        return self.decode(target, self.encode(source, source_mask), source_mask)


def _check_tokens(name: str, tokens: Tensor, vocab: int) -> None:
    if tokens.ndim != 2 or tokens.is_floating_point() or not tokens.shape[1]:
        raise ValueError(
            f"{name} must be integers [batch, time] of at least one step, got {tokens.dtype} {list(tokens.shape)}"
        )
    if not tokens.is_cuda and not torch.compiler.is_compiling():  # on a GPU the look-up itself raises, without a wait
        low, high = int(tokens.min()), int(tokens.max())
        if low < 0 or high >= vocab:
            raise ValueError(f"{name} must lie in 0..{vocab - 1}, got {low}..{high}")
