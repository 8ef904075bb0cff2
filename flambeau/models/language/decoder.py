"""Llama-style causal transformer over tokens."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from flambeau.nn.kv_cache import Append, KVCache
from flambeau.nn.rotary import Rotary, grid_coordinates, line_coordinates, rotate


class Attention(nn.Module):
    """Multi-head self-attention with grouped keys and values (Ainslie et al. 2023, arXiv 2305.13245)."""

    def __init__(self, width: int, heads: int, kv_heads: int, qk_norm: bool, dropout: float):
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, width // heads
        self.dropout = dropout
        self.qkv = nn.Linear(width, (heads + 2 * kv_heads) * self.head_dim, bias=False)
        self.out = nn.Linear(heads * self.head_dim, width, bias=False)
        self.query_norm = nn.RMSNorm(self.head_dim) if qk_norm else None
        self.key_norm = nn.RMSNorm(self.head_dim) if qk_norm else None

    def forward(
        self,
        x: Float[Tensor, "batch time width"],
        angles: Float[Tensor, "batch 2 time head_dim"] | None,
        mask: Bool[Tensor, ...] | None,
        cache: KVCache | None,
        layer: int,
        append: Append | None,
    ) -> Float[Tensor, "batch time width"]:
        batch, time, _ = x.shape
        qkv = self.qkv(x).view(batch, time, -1, self.head_dim).transpose(1, 2)
        queries_and_keys, values = qkv.split([self.heads + self.kv_heads, self.kv_heads], 1)
        if self.query_norm is not None and self.key_norm is not None:
            queries, keys = queries_and_keys.split([self.heads, self.kv_heads], 1)
            queries_and_keys = torch.cat([self.query_norm(queries), self.key_norm(keys)], 1)
        if angles is not None:
            queries_and_keys = rotate(queries_and_keys, angles)
        queries, keys = queries_and_keys.split([self.heads, self.kv_heads], 1)
        causal = mask is None
        if cache is not None and append is not None:
            keys, values = cache.write(layer, keys, values, append)
            mask, causal = append.mask, append.causal
        attended = F.scaled_dot_product_attention(
            queries,
            keys,
            values,
            attn_mask=mask,
            is_causal=causal,
            dropout_p=self.dropout if self.training else 0.0,
            enable_gqa=self.heads != self.kv_heads,
        )
        return self.out(attended.transpose(1, 2).reshape(batch, time, -1))


class SwiGLU(nn.Module):
    """Gated feed-forward (Shazeer 2020, arXiv 2002.05202)."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.gate_and_up = nn.Linear(width, 2 * hidden, bias=False)
        self.out = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        gate, up = self.gate_and_up(x).chunk(2, -1)
        return self.out(F.silu(gate) * up)


class Block(nn.Module):
    """Pre-norm attention and feed-forward, each added to the residual stream."""

    def __init__(self, width: int, heads: int, kv_heads: int, hidden: int, qk_norm: bool, dropout: float):
        super().__init__()
        self.attention_norm = nn.RMSNorm(width, eps=1e-5)
        self.attention = Attention(width, heads, kv_heads, qk_norm, dropout)
        self.mlp_norm = nn.RMSNorm(width, eps=1e-5)
        self.mlp = SwiGLU(width, hidden)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Float[Tensor, "batch time width"],
        angles: Tensor | None = None,
        mask: Tensor | None = None,
        cache: KVCache | None = None,
        layer: int = 0,
        append: Append | None = None,
    ) -> Float[Tensor, "batch time width"]:
        x = x + self.dropout(self.attention(self.attention_norm(x), angles, mask, cache, layer, append))
        return x + self.dropout(self.mlp(self.mlp_norm(x)))


class Decoder(nn.Module):
    """Causal transformer: RMSNorm, SwiGLU, rotary or learned positions, grouped queries (Touvron et al. 2023,
    arXiv 2302.13971; as an image model LlamaGen, arXiv 2406.06525).

    Token s of the input predicts token s+1. Called without a cache it scores whole sequences; with one it appends
    the tokens it is fed to every row, so that any decoder of `flambeau.generation` can drive it.

    vocab: tokens that can be predicted. conditions: further input-only ids vocab..vocab+conditions-1 (start, class
    or null tokens). length: longest sequence. kv_heads: defaults to heads. hidden: feed-forward size, by default
    8/3 of the width rounded up to a multiple of 16. position: "rotary" or "learned". grid: cells of a raster-ordered
    image behind `prefix` condition tokens, for 2-D (n-D) rotary angles; None is 1-D.
    Raises ValueError when sizes do not divide or the grid does not fill `length`.
    """

    def __init__(
        self,
        vocab: int,
        length: int,
        width: int = 256,
        depth: int = 6,
        heads: int = 4,
        *,
        kv_heads: int | None = None,
        hidden: int | None = None,
        position: Literal["rotary", "learned"] = "rotary",
        grid: tuple[int, ...] | None = None,
        prefix: int = 1,
        qk_norm: bool = False,
        conditions: int = 0,
        dropout: float = 0.0,
    ):
        super().__init__()
        kv_heads = heads if kv_heads is None else kv_heads
        if width % heads:
            raise ValueError(f"width must be divisible by heads, got {width} and {heads}")
        if heads % kv_heads:
            raise ValueError(f"heads must be divisible by kv_heads, got {heads} and {kv_heads}")
        if position not in ("rotary", "learned"):
            raise ValueError(f"position must be 'rotary' or 'learned', got {position!r}")
        if grid is not None and position == "learned":
            raise ValueError("grid shapes rotary angles; got it with position='learned'")
        coordinates = line_coordinates(length) if grid is None else grid_coordinates(grid, prefix)
        if coordinates.shape[0] < length:
            raise ValueError(
                f"grid {grid} behind {prefix} tokens has {coordinates.shape[0]} places, length is {length}"
            )
        hidden = -(-8 * width // 48) * 16 if hidden is None else hidden
        self.vocab, self.input_vocab, self.length = vocab, vocab + conditions, length
        self.embedding = nn.Embedding(self.input_vocab, width)
        self.position = nn.Embedding(length, width) if position == "learned" else None
        self.rotary = Rotary(width // heads, coordinates[:length]) if position == "rotary" else None
        self.blocks = nn.ModuleList(Block(width, heads, kv_heads, hidden, qk_norm, dropout) for _ in range(depth))
        self.norm = nn.RMSNorm(width, eps=1e-5)
        self.head = nn.Linear(width, vocab, bias=False)
        self.apply(_initialise)
        for name, weight in self.named_parameters():
            if name.endswith("out.weight"):
                nn.init.normal_(weight, std=0.02 / (2 * depth) ** 0.5)

    def new_cache(self, batch: int, capacity: int) -> KVCache:
        """An empty cache for `batch` rows of up to `capacity` tokens."""
        return KVCache(len(self.blocks), batch, capacity)

    def hidden(
        self,
        x: Float[Tensor, "batch time width"],
        *,
        positions: Int[Tensor, "batch time"] | None = None,
        mask: Bool[Tensor, ...] | None = None,
        slots: Int[Tensor, "batch time"] | None = None,
        cache: KVCache | None = None,
    ) -> Float[Tensor, "batch time width"]:
        """Final hidden states of embedded inputs; see `forward` for the arguments."""
        append = None
        if cache is not None:
            append = cache.begin(x.shape[1], x.device, slots=slots, mask=mask)
            positions = append.positions if positions is None else positions
        elif positions is None:
            positions = torch.arange(x.shape[1], device=x.device)[None]
        if mask is not None and mask.ndim == 3:
            mask = mask[:, None]
        if self.position is not None:
            x = x + self.position(positions)
        angles = None if self.rotary is None else self.rotary(positions).to(x.dtype)
        for layer, block in enumerate(self.blocks):
            x = block(x, angles, mask, cache, layer, append)
        if cache is not None and append is not None:
            cache.commit(append)
        return self.norm(x)

    def forward(
        self,
        tokens: Int[Tensor, "batch time"],
        *,
        positions: Int[Tensor, "batch time"] | None = None,
        mask: Bool[Tensor, ...] | None = None,
        slots: Int[Tensor, "batch time"] | None = None,
        cache: KVCache | None = None,
        keep: int | None = None,
    ) -> Float[Tensor, "batch kept vocab"]:
        """Next-token logits.

        positions: sequence positions of the tokens; by default they follow the cache. mask, slots: as in
        `KVCache.begin`; without a cache `mask` is [time, time] or [batch, time, time], True where visible.
        keep: compute logits for the last `keep` tokens only.
        """
        x = self.hidden(self.embedding(tokens), positions=positions, mask=mask, slots=slots, cache=cache)
        return self.head(x if keep is None else x[:, -keep:])


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
