"""The forecasts that cost nothing: no report of a learned model is complete without them."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn


class SeasonalNaive(nn.Module):
    """Repeat the last whole season of the window. It has no parameters.

    Args:
        c_in: channels of the window; the first `c_out` are the targets.
        season: steps of a season, at most `seq_len`.
        c_out, seq_len, pred_len: shape of the forecast.
        label_len, marks, outputs: accepted so that forecasters are interchangeable; `outputs` must be 1.

    Raises:
        ValueError: a season below 1 or longer than the window.
    """

    def __init__(
        self,
        c_in: int,
        c_out: int | None = None,
        seq_len: int = 96,
        pred_len: int = 96,
        season: int = 24,
        label_len: int = 0,
        marks: int = 0,
        outputs: int = 1,
    ):
        super().__init__()
        if not 1 <= season <= seq_len:
            raise ValueError(f"season must be between 1 and seq_len = {seq_len}, got {season}")
        if outputs != 1:
            raise ValueError(f"a naive forecast is a point: outputs must be 1, got {outputs}")
        self.c_out = c_in if c_out is None else c_out
        steps = seq_len - season + torch.arange(pred_len) % season
        self.register_buffer("steps", steps, persistent=False)

    def forward(
        self,
        x: Float[Tensor, "batch seq c_in"],
        x_mark: Float[Tensor, "batch seq marks"] | None = None,
        y_mark: Float[Tensor, "batch labelpred marks"] | None = None,
    ) -> Float[Tensor, "batch pred c_out"]:
        return x[:, self.steps, : self.c_out]


class RepeatLast(SeasonalNaive):
    """Repeat the last value of the window. Arguments as :class:`SeasonalNaive`, of season 1."""

    def __init__(
        self,
        c_in: int,
        c_out: int | None = None,
        seq_len: int = 96,
        pred_len: int = 96,
        label_len: int = 0,
        marks: int = 0,
        outputs: int = 1,
    ):
        super().__init__(c_in, c_out, seq_len, pred_len, 1, label_len, marks, outputs)
