"""Informer (Zhou et al. 2021, https://arxiv.org/abs/2012.07436)."""

from __future__ import annotations

from functools import partial
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from flambeau.models.series.transformer import ForecastTransformer
from flambeau.nn.series.attention import ProbSparseAttention


class Distilling(nn.Module):
    """Halve the length between encoder layers: convolution, batch norm, ELU, max-pooling of stride 2 (section 3.2)."""

    def __init__(self, dim: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv1d(dim, dim, 3, padding=1, padding_mode="circular"),
            nn.BatchNorm1d(dim),
            nn.ELU(),
            nn.MaxPool1d(3, stride=2, padding=1),
        )

    def forward(self, x: Float[Tensor, "batch time dim"]) -> Float[Tensor, "batch half dim"]:
        return self.layers(x.transpose(1, 2)).transpose(1, 2)


class Informer(ForecastTransformer):
    """The Transformer forecaster with ProbSparse self-attention and a distilling encoder.

    Args:
        c_in: channels of the input window.
        factor: of sampled keys and active queries, see :class:`~flambeau.nn.ProbSparseAttention`.
        distil: halve the length between encoder layers.
        dim: width of the network.
        options: the other arguments of :class:`~flambeau.models.series.ForecastTransformer`.
    """

    def __init__(
        self,
        c_in: int,
        c_out: int | None = None,
        *,
        factor: int = 5,
        distil: bool = True,
        dim: int = 512,
        **options: Any,
    ):
        def attend(causal: bool) -> ProbSparseAttention:
            return ProbSparseAttention(factor, causal=causal)

        between = partial(Distilling, dim) if distil else nn.Identity
        super().__init__(c_in, c_out, dim=dim, mechanism=attend, between=between, **options)
