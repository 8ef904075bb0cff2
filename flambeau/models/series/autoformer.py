"""Autoformer (Wu, Xu, Wang, Long 2021, https://arxiv.org/abs/2106.13008)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from flambeau.models.series.shape import add_level, check_window
from flambeau.nn.series.attention import FullAttention, ProjectedHeads
from flambeau.nn.series.auto_correlation import AutoCorrelation
from flambeau.nn.series.decomposition import SeasonalLayerNorm, SeriesDecomposition
from flambeau.nn.series.embedding import SeriesEmbedding


class FeedForward(nn.Sequential):
    """Two maps without bias, each followed by dropout, with GELU between."""

    def __init__(self, dim: int, ff: int, dropout: float):
        super().__init__(
            nn.Linear(dim, ff, bias=False),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(ff, dim, bias=False),
            nn.Dropout(dropout),
        )


class AutoformerEncoderLayer(nn.Module):
    """Mixing and feed-forward, each followed by a decomposition of which the seasonal part goes on (equation 3)."""

    def __init__(
        self, mechanism: nn.Module, dim: int, heads: int, ff: int, kernel: int | Sequence[int], dropout: float
    ):
        super().__init__()
        self.mixing = ProjectedHeads(mechanism, dim, heads)
        self.feed_forward = FeedForward(dim, ff, dropout)
        self.decompositions = nn.ModuleList(SeriesDecomposition(kernel) for _ in range(2))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "batch time dim"]) -> Float[Tensor, "batch time dim"]:
        x, _ = self.decompositions[0](x + self.dropout(self.mixing(x, x)))
        x, _ = self.decompositions[1](x + self.feed_forward(x))
        return x


class AutoformerDecoderLayer(nn.Module):
    """Self mixing, mixing with the encoder, feed-forward; the trends shed are summed and projected (equation 4)."""

    def __init__(
        self,
        mechanism: nn.Module,
        cross_mechanism: nn.Module,
        dim: int,
        heads: int,
        ff: int,
        kernel: int | Sequence[int],
        c_out: int,
        dropout: float,
    ):
        super().__init__()
        self.mixing = ProjectedHeads(mechanism, dim, heads)
        self.cross = ProjectedHeads(cross_mechanism, dim, heads)
        self.feed_forward = FeedForward(dim, ff, dropout)
        self.decompositions = nn.ModuleList(SeriesDecomposition(kernel) for _ in range(3))
        self.trend = nn.Conv1d(dim, c_out, 3, padding=1, padding_mode="circular", bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Float[Tensor, "batch time dim"], encoded: Float[Tensor, "batch seq dim"]
    ) -> tuple[Float[Tensor, "batch time dim"], Float[Tensor, "batch time c_out"]]:
        x, trend1 = self.decompositions[0](x + self.dropout(self.mixing(x, x)))
        x, trend2 = self.decompositions[1](x + self.dropout(self.cross(x, encoded)))
        x, trend3 = self.decompositions[2](x + self.feed_forward(x))
        return x, self.trend((trend1 + trend2 + trend3).transpose(1, 2)).transpose(1, 2)


class Autoformer(nn.Module):
    """Encoder-decoder forecaster that carries trend and seasonal part separately through every layer.

    Args:
        c_in: channels of the input window; the first `c_out` are the targets, the others help.
        c_out: targets; by default all `c_in`.
        seq_len, label_len, pred_len: steps of the input window, of its end that starts the decoder, of the forecast.
        dim, heads, enc_layers, dec_layers, ff: sizes of the network.
        kernel: width of the moving average, odd; several are mixed, see :class:`~flambeau.nn.SeriesDecomposition`.
        factor, align, batch_lags: of :class:`~flambeau.nn.AutoCorrelation`.
        freq: pandas frequency, which sets the width of the marks to its time features.
        marks: width of the marks if it is not that of `freq` alone (columns known in advance).
        dropout: of embeddings and layers.
        outputs: outputs for each target, more than one for the parameters of a distribution.
        mechanism: ``mechanism(causal)`` builds what mixes time; by default Auto-Correlation, which ignores `causal`.

    Raises:
        ValueError: an even kernel, ``label_len > seq_len``, an unknown `freq`, `dim` not a multiple of `heads`.
    """

    def __init__(
        self,
        c_in: int,
        c_out: int | None = None,
        seq_len: int = 96,
        label_len: int = 48,
        pred_len: int = 96,
        dim: int = 512,
        heads: int = 8,
        enc_layers: int = 2,
        dec_layers: int = 1,
        ff: int = 2048,
        kernel: int | Sequence[int] = 25,
        factor: float = 3,
        align: Literal["paper", "lag"] = "paper",
        batch_lags: bool | None = None,
        freq: str = "h",
        marks: int | None = None,
        dropout: float = 0.05,
        outputs: int = 1,
        mechanism: Callable[[bool], nn.Module] | None = None,
    ):
        super().__init__()
        if not 0 <= label_len <= seq_len:
            raise ValueError(f"label_len must be between 0 and seq_len = {seq_len}, got {label_len}")
        if marks is None:
            from flambeau.data.series.time_features import time_feature_names

            marks = len(time_feature_names(freq))
        self.c_in, self.c_out, self.outputs, self.marks = c_in, c_in if c_out is None else c_out, outputs, marks
        self.seq_len, self.label_len, self.pred_len = seq_len, label_len, pred_len

        def mix(causal: bool) -> nn.Module:
            if mechanism is None:
                return AutoCorrelation(factor, align=align, batch_lags=batch_lags)
            return mechanism(causal)

        self.decomposition = SeriesDecomposition(kernel)
        self.encoder_embedding = SeriesEmbedding(c_in, marks, dim, dropout=dropout)
        self.decoder_embedding = SeriesEmbedding(c_in, marks, dim, dropout=dropout)
        self.encoder = nn.ModuleList(
            AutoformerEncoderLayer(mix(False), dim, heads, ff, kernel, dropout) for _ in range(enc_layers)
        )
        self.encoder_norm = SeasonalLayerNorm(dim)
        self.decoder = nn.ModuleList(
            AutoformerDecoderLayer(mix(True), mix(False), dim, heads, ff, kernel, self.c_out, dropout)
            for _ in range(dec_layers)
        )
        self.decoder_norm = SeasonalLayerNorm(dim)
        self.projection = nn.Linear(dim, self.c_out * outputs)

    def start(
        self, x: Float[Tensor, "batch seq c_in"]
    ) -> tuple[Float[Tensor, "batch labelpred c_in"], Float[Tensor, "batch labelpred c_out"]]:
        """What the decoder begins with: the recent seasonal part and zeros; the recent trend and the window's mean."""
        seasonal, trend = self.decomposition(x)
        recent = slice(self.seq_len - self.label_len, self.seq_len)
        mean = x.mean(dim=1, keepdim=True).expand(-1, self.pred_len, -1)
        seasonal = torch.cat([seasonal[:, recent], torch.zeros_like(mean)], dim=1)
        return seasonal, torch.cat([trend[:, recent], mean], dim=1)[..., : self.c_out]

    def forward(
        self,
        x: Float[Tensor, "batch seq c_in"],
        x_mark: Float[Tensor, "batch seq marks"],
        y_mark: Float[Tensor, "batch labelpred marks"],
    ) -> Float[Tensor, "batch pred c_out"]:
        """Forecast in the units of `x`; ``[batch, pred, c_out, outputs]`` if there are several outputs."""
        check_window(
            x, x_mark, y_mark,
            c_in=self.c_in, seq_len=self.seq_len, y_len=self.label_len + self.pred_len, marks=self.marks,
        )  # fmt: skip
        seasonal, trend = self.start(x)
        encoded = self.encoder_embedding(x, x_mark)
        for layer in self.encoder:
            encoded = layer(encoded)
        encoded = self.encoder_norm(encoded)
        decoded = self.decoder_embedding(seasonal, y_mark)
        for layer in self.decoder:
            decoded, shed = layer(decoded, encoded)
            trend = trend + shed
        out = add_level(self.projection(self.decoder_norm(decoded)), trend, self.outputs)
        return out[:, self.label_len :]


def decomposition_attention(c_in: int, c_out: int | None = None, **sizes: Any) -> Autoformer:
    """The ablation of section 4.3: :class:`Autoformer` with self-attention in place of Auto-Correlation."""
    return Autoformer(c_in, c_out, mechanism=_attention, **sizes)


def _attention(causal: bool) -> FullAttention:
    return FullAttention(causal=causal)


__all__ = ["Autoformer", "AutoformerDecoderLayer", "AutoformerEncoderLayer", "decomposition_attention"]
