"""The vanilla encoder-decoder Transformer as a forecaster: the baseline of the long-horizon forecasting papers."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from flambeau.models.series.shape import add_level, check_window
from flambeau.nn.series.attention import FullAttention, ProjectedHeads
from flambeau.nn.series.embedding import SeriesEmbedding


class TransformerLayer(nn.Module):
    """Attention, attention to a context given a `cross_mechanism`, feed-forward; layer norm after each residual."""

    def __init__(
        self,
        mechanism: nn.Module,
        dim: int,
        heads: int,
        ff: int,
        dropout: float,
        cross_mechanism: nn.Module | None = None,
    ):
        super().__init__()
        self.mixing = ProjectedHeads(mechanism, dim, heads)
        self.norm = nn.LayerNorm(dim)
        self.cross = ProjectedHeads(cross_mechanism, dim, heads) if cross_mechanism is not None else None
        self.cross_norm = nn.LayerNorm(dim) if cross_mechanism is not None else nn.Identity()
        self.feed_forward = nn.Sequential(
            nn.Linear(dim, ff), nn.GELU(), nn.Dropout(dropout), nn.Linear(ff, dim), nn.Dropout(dropout)
        )
        self.out_norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Float[Tensor, "batch time dim"], context: Float[Tensor, "batch seq dim"] | None = None
    ) -> Float[Tensor, "batch time dim"]:
        x = self.norm(x + self.dropout(self.mixing(x, x)))
        if self.cross is not None:
            x = self.cross_norm(x + self.dropout(self.cross(x, context)))
        return self.out_norm(x + self.feed_forward(x))


class ForecastTransformer(nn.Module):
    """Encoder over the window; causal decoder over its end and zeros in place of the future, all at once.

    Arguments as :class:`~flambeau.models.series.Autoformer`. `mechanism` and `between` vary it:
    :class:`~flambeau.models.series.Informer` is this network with ProbSparse attention and distilling.

    Args:
        mechanism: ``mechanism(causal)`` builds the self-attention.
        between: builds a module between encoder layers.
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
        freq: str = "h",
        marks: int | None = None,
        dropout: float = 0.05,
        outputs: int = 1,
        mechanism: Callable[[bool], nn.Module] | None = None,
        between: Callable[[], nn.Module] = nn.Identity,
    ):
        super().__init__()
        if not 0 <= label_len <= seq_len:
            raise ValueError(f"label_len must be between 0 and seq_len = {seq_len}, got {label_len}")
        if marks is None:
            from flambeau.data.series.time_features import time_feature_names

            marks = len(time_feature_names(freq))
        self.c_in, self.c_out, self.outputs, self.marks = c_in, c_in if c_out is None else c_out, outputs, marks
        self.seq_len, self.label_len, self.pred_len = seq_len, label_len, pred_len

        def attend(causal: bool) -> nn.Module:
            return FullAttention(causal=causal) if mechanism is None else mechanism(causal)

        self.encoder_embedding = SeriesEmbedding(c_in, marks, dim, dropout=dropout, positions=True)
        self.decoder_embedding = SeriesEmbedding(c_in, marks, dim, dropout=dropout, positions=True)
        layers: list[nn.Module] = []
        for _ in range(enc_layers):
            layers += [TransformerLayer(attend(False), dim, heads, ff, dropout), between()]
        self.encoder = nn.Sequential(*layers[:-1], nn.LayerNorm(dim))
        self.decoder = nn.ModuleList(
            TransformerLayer(attend(True), dim, heads, ff, dropout, FullAttention()) for _ in range(dec_layers)
        )
        self.decoder_norm = nn.LayerNorm(dim)
        self.projection = nn.Linear(dim, self.c_out * outputs)

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
        encoded = self.encoder(self.encoder_embedding(x, x_mark))
        recent = x[:, self.seq_len - self.label_len :]
        decoded = self.decoder_embedding(
            torch.cat([recent, x.new_zeros(x.shape[0], self.pred_len, self.c_in)], dim=1), y_mark
        )
        for layer in self.decoder:
            decoded = layer(decoded, encoded)
        out = self.projection(self.decoder_norm(decoded))[:, self.label_len :]
        return add_level(out, out.new_zeros(*out.shape[:2], self.c_out), self.outputs)
