"""The transformer block that GPT and BERT share."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from flambeau.nn.attention.core import AttentionCore

Norm = Literal["pre", "post"]


class SelfAttention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017, section 3.2).

    The rows of `qkv` are laid out head by head (queries, keys and values of head 0, then of head 1, ...), so a slice
    of whole heads is a contiguous slice of the weight, and the number of heads is read from the projection's output.
    """

    def __init__(self, width: int, heads: int, *, causal: bool, dropout: float):
        super().__init__()
        self.head_dim = width // heads
        self.qkv = nn.Linear(width, 3 * width)
        self.core = AttentionCore(causal, dropout)
        self.out = nn.Linear(width, width)

    def forward(
        self, x: Float[Tensor, "batch time width"], mask: Bool[Tensor, "batch time"] | None = None
    ) -> Float[Tensor, "batch time width"]:
        queries, keys, values = self.qkv(x).unflatten(-1, (-1, 3, self.head_dim)).permute(3, 0, 2, 1, 4).unbind(0)
        return self.out(self.core(queries, keys, values, mask).transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """Linear, GELU, Linear."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        return self.down(F.gelu(self.up(x)))


class TransformerBlock(nn.Module):
    """Attention and MLP, each with dropout, a residual connection and a LayerNorm.

    norm: "pre" normalises the input of each part, "post" the sum behind it (the original transformer and BERT). With
    "post", deep BERTs become unstable (Shoeybi et al. 2019, arXiv 1909.08053, figure 7).
    """

    def __init__(self, width: int, heads: int, hidden: int, *, causal: bool, dropout: float, norm: Norm):
        super().__init__()
        self.norm = norm
        self.attention_norm = nn.LayerNorm(width)
        self.attention = SelfAttention(width, heads, causal=causal, dropout=dropout)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = MLP(width, hidden)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Float[Tensor, "batch time width"], mask: Bool[Tensor, "batch time"] | None = None
    ) -> Float[Tensor, "batch time width"]:
        if self.norm == "pre":
            x = x + self.dropout(self.attention(self.attention_norm(x), mask))
            return x + self.dropout(self.mlp(self.mlp_norm(x)))
        x = self.attention_norm(x + self.dropout(self.attention(x, mask)))
        return self.mlp_norm(x + self.dropout(self.mlp(x)))


def check_sizes(vocab: int, length: int, width: int, depth: int, heads: int, dropout: float, norm: str) -> None:
    """Raises ValueError for sizes that no transformer can have; the message names the argument."""
    for name, value in (("vocab", vocab), ("length", length), ("width", width), ("depth", depth), ("heads", heads)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if width % heads:
        raise ValueError(f"width must be divisible by heads, got {width} and {heads}")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must lie in [0, 1), got {dropout}")
    if norm not in ("pre", "post"):
        raise ValueError(f"norm must be 'pre' or 'post', got {norm!r}")


def initialise(model: nn.Module, depth: int) -> None:
    """N(0, 0.02) for weights, those that feed a residual connection times 1/sqrt(2 depth) (Radford et al. 2019)."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            residual = name.endswith((".attention.out", ".mlp.down"))
            nn.init.normal_(module.weight, std=0.02 / (2 * depth) ** 0.5 if residual else 0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
