"""Forecasters: one interface, ``forward(x, x_mark, y_mark) -> [batch, pred_len, c_out]`` in scaled units."""

from flambeau.models.series.autoformer import Autoformer, decomposition_attention
from flambeau.models.series.dlinear import DLinear
from flambeau.models.series.informer import Informer
from flambeau.models.series.naive import RepeatLast, SeasonalNaive
from flambeau.models.series.transformer import ForecastTransformer

__all__ = [
    "Autoformer",
    "DLinear",
    "ForecastTransformer",
    "Informer",
    "RepeatLast",
    "SeasonalNaive",
    "decomposition_attention",
]
