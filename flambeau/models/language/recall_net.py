"""The smallest network around one attention layer: embeddings, the layer, a linear head."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor, nn


class RecallNet(nn.Module):
    """Answers the questions of `flambeau.data.recall.Recall` with a single attention layer.

    attention: a layer of `flambeau.nn.attention` of `dim` channels. keys, values: different ones in the input.
    """

    def __init__(self, attention: nn.Module, dim: int, keys: int = 128, values: int = 16):
        super().__init__()
        self.key, self.value = nn.Embedding(keys, dim), nn.Embedding(values + 1, dim, padding_idx=values)
        self.attention = attention
        self.norm_in, self.norm_out = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.head = nn.Linear(dim, values)

    def embed(self, tokens: Int[Tensor, "batch time 2"]) -> Float[Tensor, "batch time dim"]:
        """What the attention layer is given; a hidden value adds nothing."""
        return self.norm_in(self.key(tokens[..., 0]) + self.value(tokens[..., 1]))

    def forward(self, tokens: Int[Tensor, "batch time 2"]) -> Float[Tensor, "batch time values"]:
        """Logits of the value of every token."""
        x = self.key(tokens[..., 0]) + self.value(tokens[..., 1])
        x = x + self.attention(self.norm_in(x))[0]
        return self.head(self.norm_out(x))
