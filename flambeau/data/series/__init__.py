"""Time series: reading, calendar features, windows and splits. Needs the extra ``flambeau[series]`` (pandas)."""

from flambeau.data.series.embedded import co2, taylor
from flambeau.data.series.frame import TimeSeries, series_from_frame
from flambeau.data.series.frequency import default_sizes, infer_frequency, season_length
from flambeau.data.series.reading import read_frame, read_series
from flambeau.data.series.time_features import time_feature_names, time_features
from flambeau.data.series.windows import (
    ETT_HOURS,
    ETT_MINUTES,
    SeriesScaler,
    Splits,
    Windows,
    prepare,
    split_of,
    split_rows,
    split_windows,
)

__all__ = [
    "ETT_HOURS",
    "ETT_MINUTES",
    "SeriesScaler",
    "Splits",
    "TimeSeries",
    "Windows",
    "co2",
    "default_sizes",
    "infer_frequency",
    "prepare",
    "read_frame",
    "read_series",
    "season_length",
    "series_from_frame",
    "split_of",
    "split_rows",
    "split_windows",
    "taylor",
    "time_feature_names",
    "time_features",
]
