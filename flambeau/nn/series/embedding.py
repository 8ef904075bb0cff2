"""Embedding of a series: a convolution of its values, a linear map of its time marks, and positions on request."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn


class SeriesEmbedding(nn.Module):
    """Values by a circular convolution of width 3 plus marks by a linear map, both without bias.

    Args:
        channels: width of the values.
        marks: width of the marks (time features, columns known in advance); 0 for none.
        dim: width of the embedding.
        dropout: of the sum, in training.
        positions: add sinusoidal positions. Autoformer has none: rolling whole sub-series keeps their order.
    """

    def __init__(self, channels: int, marks: int, dim: int, *, dropout: float = 0.05, positions: bool = False):
        super().__init__()
        self.values = nn.Conv1d(channels, dim, 3, padding=1, padding_mode="circular", bias=False)
        nn.init.kaiming_normal_(self.values.weight, nonlinearity="leaky_relu")
        self.marks = nn.Linear(marks, dim, bias=False) if marks else None
        self.positions = positions
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Float[Tensor, "batch time channels"], marks: Float[Tensor, "batch time marks"]
    ) -> Float[Tensor, "batch time dim"]:
        out = self.values(x.transpose(1, 2)).transpose(1, 2)
        if self.marks is not None:
            out = out + self.marks(marks)
        if self.positions:
            out = out + _sinusoids(out.shape[1], out.shape[2], out.device).to(out.dtype)
        return self.dropout(out)


def _sinusoids(length: int, dim: int, device: torch.device) -> Tensor:
    half = torch.exp(torch.arange(0, dim, 2, device=device) * (-math.log(10000.0) / dim))
    angle = torch.arange(length, device=device).unsqueeze(1) * half
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)[:, :dim]
