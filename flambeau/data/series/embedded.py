"""Series that come with packages of the extra ``series``."""

from __future__ import annotations

import numpy as np

from flambeau.data.series.frame import TimeSeries
from flambeau.extras import require


def co2() -> TimeSeries:
    """Weekly carbon dioxide at Mauna Loa in ppm, 1958 to 2001, 2284 weeks of which 59 are missing (statsmodels)."""
    frame = require("statsmodels.datasets.co2", "series").load_pandas().data
    return _one(frame.index, "W-SAT", frame["co2"].to_numpy(), "co2")


def taylor() -> TimeSeries:
    """Half-hourly electricity demand of England and Wales in MW, 5 June to 27 August 2000 (pmdarima; Taylor 2003)."""
    demand = require("pmdarima.datasets", "series").load_taylor()
    times = require("pandas", "series").date_range("2000-06-05", periods=len(demand), freq="30min")
    return _one(times, "30min", demand, "demand")


def _one(times, freq: str, values: np.ndarray, name: str) -> TimeSeries:
    column = np.asarray(values, dtype=float)[:, None]
    return TimeSeries(times, freq, column, (name,), column[:, :0], (), column[:, :0], (), id=name)
