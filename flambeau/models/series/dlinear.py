"""DLinear (Zeng et al. 2023, "Are Transformers Effective for Time Series Forecasting?", section 4)."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from flambeau.nn.series.decomposition import SeriesDecomposition


class DLinear(nn.Module):
    """One linear map of time for the trend and one for the seasonal part, shared by the channels.

    Both start at the mean of the window (weights ``1 / seq_len``), as published. Channels do not mix: of `c_in`
    channels the first `c_out`, the targets, are forecast from their own past.

    Args:
        c_in, c_out: channels of the window and of the forecast.
        seq_len, pred_len: steps of the window and of the forecast.
        kernel: width of the moving average, odd.
        label_len, marks: accepted so that forecasters are interchangeable; unused.
        outputs: outputs for each target, more than one for the parameters of a distribution.
    """

    def __init__(
        self,
        c_in: int,
        c_out: int | None = None,
        seq_len: int = 96,
        pred_len: int = 96,
        kernel: int = 25,
        label_len: int = 0,
        marks: int = 0,
        outputs: int = 1,
    ):
        super().__init__()
        self.c_out, self.outputs = c_in if c_out is None else c_out, outputs
        self.decomposition = SeriesDecomposition(kernel)
        self.seasonal, self.trend = (nn.Linear(seq_len, pred_len * outputs) for _ in range(2))
        for linear in (self.seasonal, self.trend):
            nn.init.constant_(linear.weight, 1 / seq_len)

    def forward(
        self,
        x: Float[Tensor, "batch seq c_in"],
        x_mark: Float[Tensor, "batch seq marks"] | None = None,
        y_mark: Float[Tensor, "batch labelpred marks"] | None = None,
    ) -> Float[Tensor, "batch pred c_out"]:
        seasonal, trend = self.decomposition(x[..., : self.c_out])
        out = self.seasonal(seasonal.transpose(1, 2)) + self.trend(trend.transpose(1, 2))
        if self.outputs == 1:
            return out.transpose(1, 2)
        return out.unflatten(-1, (-1, self.outputs)).transpose(1, 2)
