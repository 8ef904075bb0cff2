"""Calendar features in [-0.5, 0.5] for any pandas frequency (after GluonTS, as used by Informer and Autoformer)."""

from __future__ import annotations

from typing import Any

import numpy as np

from flambeau.data.series.frequency import DAY, offset_of, step_seconds
from flambeau.extras import require

FEATURES = {
    "microsecond": lambda t: t.microsecond / 999999 - 0.5,
    "second": lambda t: t.second / 59 - 0.5,
    "minute": lambda t: t.minute / 59 - 0.5,
    "hour": lambda t: t.hour / 23 - 0.5,
    "day of week": lambda t: t.dayofweek / 6 - 0.5,
    "day of month": lambda t: (t.day - 1) / 30 - 0.5,
    "day of year": lambda t: (t.dayofyear - 1) / 365 - 0.5,
    "week of year": lambda t: (t.isocalendar().week.to_numpy(dtype=float) - 1) / 52 - 0.5,
    "month of year": lambda t: (t.month - 1) / 11 - 0.5,
}
DAYS = ("day of week", "day of month", "day of year")


def time_feature_names(freq: str) -> tuple[str, ...]:
    """Which features a step of `freq` has: those that vary from one step to the next, none for yearly series.

    Raises:
        ValueError: not a pandas frequency.
    """
    name, seconds = offset_of(freq).name.split("-")[0], step_seconds(freq)
    if name in ("W", "WOM", "LWOM"):
        return ("day of month", "week of year")
    if name in ("SME", "SMS"):
        return ("day of month", "month of year")
    if seconds >= 360 * DAY:
        return ()
    if seconds >= 27 * DAY:
        return ("month of year",)
    clock = [
        unit
        for unit, length in (("microsecond", 1), ("second", 60), ("minute", 3600), ("hour", DAY))
        if seconds < length
    ]
    return (*clock, *DAYS)


def time_features(times: Any, freq: str) -> np.ndarray:
    """The features of a ``pandas.DatetimeIndex``, float32 ``[time, feature]``, in the order of `time_feature_names`."""
    times = require("pandas", "series").DatetimeIndex(times)
    columns = [np.asarray(FEATURES[name](times), dtype=np.float32) for name in time_feature_names(freq)]
    return np.stack(columns, axis=1) if columns else np.zeros((len(times), 0), np.float32)
