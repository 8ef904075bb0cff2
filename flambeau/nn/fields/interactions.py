"""How the vectors of a record's fields are combined: factorisation machines, cross and compressed interactions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


def bi_interaction(x: Float[Tensor, "batch fields dim"]) -> Float[Tensor, "batch dim"]:
    """Sum of the element-wise products of all pairs of fields, in linear time (Rendle 2010; He & Chua 2017, eq. 3).

    Its sum over `dim` is the second-order term of a factorisation machine.
    """
    return 0.5 * (x.sum(1).square() - x.square().sum(1))


def anova_kernel(x: Float[Tensor, "batch fields dim"], order: int) -> Float[Tensor, "batch dim"]:
    """Sum of the element-wise products of all sets of `order` distinct fields (Blondel et al. 2016, algorithm 1).

    Raises:
        ValueError: an order below 1.
    """
    if order < 1:
        raise ValueError(f"order must be at least 1, got {order}")
    below = torch.ones_like(x)  # order t - 1, over the fields before each
    total = x.sum(1)
    for degree in range(order):
        terms = x * below
        total = terms.sum(1)
        if degree + 1 < order:
            below = terms.cumsum(1) - terms
    return total


class AttentionalPairs(nn.Module):
    """Products of all pairs of fields, weighted by a small attention network (AFM: Xiao et al. 2017, eq. 3 to 5).

    Args:
        dim: length of the field vectors.
        width: of the attention network.
        dropout: rate on the pooled vector.
    """

    def __init__(self, dim: int, width: int = 16, dropout: float = 0.0):
        super().__init__()
        self.score = nn.Sequential(nn.Linear(dim, width), nn.ReLU(), nn.Linear(width, 1, bias=False))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "batch fields dim"]) -> Float[Tensor, "batch dim"]:
        """The pooled products."""
        first, second = torch.triu_indices(x.shape[1], x.shape[1], 1, device=x.device)
        pairs = x[:, first] * x[:, second]
        return self.dropout((self.score(pairs).softmax(1) * pairs).sum(1))


class CrossNet(nn.Module):
    """Polynomials of the flattened record: ``x' = x0 (w.x) + b + x`` (DCN: Wang et al. 2017, equation 3).

    Args:
        dim: length of the flattened record.
        layers: each raises the degree by one.
    """

    def __init__(self, dim: int, layers: int = 3):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(layers, dim) / dim**0.5)
        self.bias = nn.Parameter(torch.zeros(layers, dim))

    def forward(self, x: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch dim"]:
        """The last layer's vector."""
        start = x
        for weight, bias in zip(self.weight, self.bias):
            x = start * (x @ weight).unsqueeze(1) + bias + x
        return x


class CompressedInteraction(nn.Module):
    """Compressed interaction network: products with the fields, layer on layer (xDeepFM: Lian et al. 2018, eq. 6).

    Args:
        fields: fields of a record.
        maps: feature maps of each layer; the output is their sums over the vectors' components, side by side.
    """

    def __init__(self, fields: int, maps: Sequence[int] = (32, 32)):
        super().__init__()
        before = (fields, *maps[:-1])
        self.layers = nn.ModuleList(nn.Linear(size * fields, out, bias=False) for size, out in zip(before, maps))
        self.out_features = sum(maps)

    def forward(self, x: Float[Tensor, "batch fields dim"]) -> Float[Tensor, "batch maps"]:
        """The pooled feature maps of all layers."""
        state, pooled = x, []
        for layer in self.layers:
            outer = torch.einsum("bhd,bmd->bdhm", state, x).flatten(2)
            state = layer(outer).transpose(1, 2)
            pooled.append(state.sum(2))
        return torch.cat(pooled, 1)


class ResidualUnit(nn.Module):
    """``ReLU(x + W1 ReLU(W0 x))`` (Deep Crossing: Shan et al. 2016, section 4.3)."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.first, self.second = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch dim"]:
        return F.relu(x + self.second(F.relu(self.first(x))))


def tower(in_dim: int, hidden: Sequence[int], *, dropout: float = 0.0, batch_norm: bool = False) -> nn.Sequential:
    """A multilayer perceptron with ReLU to one logit, [batch, in_dim] -> [batch, 1]."""
    layers: list[nn.Module] = []
    for width in hidden:
        layers.append(nn.Linear(in_dim, width))
        if batch_norm:
            layers.append(nn.BatchNorm1d(width))
        layers += [nn.ReLU(), nn.Dropout(dropout)]
        in_dim = width
    return nn.Sequential(*layers, nn.Linear(in_dim, 1))
