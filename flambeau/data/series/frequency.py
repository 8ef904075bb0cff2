"""The step of a time grid: its pandas frequency, its season, and window sizes that suit it."""

from __future__ import annotations

from typing import Any

from flambeau.extras import require

OLD_ALIASES = {
    "H": "h",
    "T": "min",
    "t": "min",
    "S": "s",
    "M": "ME",
    "m": "ME",
    "Q": "QE",
    "A": "YE",
    "a": "YE",
    "Y": "YE",
}
MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
CALENDAR_STEPS = (  # days of a step from which they are tried, and the frequencies
    (300, [f"{step}-{month}" for step in ("YS", "YE") for month in MONTHS]),
    (80, [f"{step}-{month}" for step in ("QS", "QE") for month in MONTHS[:3]]),
    (28, ["MS", "ME", "BMS", "BME"]),
)
WEEKDAYS = ("MON", "TUE", "WED", "THU", "FRI", "SAT", "SUN")
DAY = 86400.0
LONGEST = 384  # steps looked at unless more are asked for, so that training stays a matter of minutes


def offset_of(freq: str) -> Any:
    """The pandas offset of a frequency such as ``"h"``, ``"W-SAT"`` or ``"MS"``; old aliases are understood.

    Raises:
        ValueError: not a pandas frequency.
    """
    to_offset = require("pandas.tseries.frequencies", "series").to_offset
    try:
        return to_offset(OLD_ALIASES.get(freq, freq))
    except (ValueError, TypeError):
        raise ValueError(f"freq must be a pandas frequency such as 'h', '5min' or 'MS', got {freq!r}") from None


def step_seconds(freq: str) -> float:
    """The typical length of a step in seconds (a month counts as 30.4 days)."""
    offset, pandas = offset_of(freq), require("pandas", "series")
    start = pandas.Timestamp("2021-01-01")
    return ((start + 49 * offset) - (start + offset)).total_seconds() / 48


def season_length(freq: str) -> int:
    """Steps of the natural cycle: a minute, an hour (of steps under 5 minutes), a day, a week or a year; 1 for none."""
    seconds = step_seconds(freq)
    if offset_of(freq).name in ("B", "C"):
        return 5
    for cycle, shortest, longest in (
        (60, 1, 10),
        (3600, 10, 299),
        (DAY, 299, DAY / 4),
        (7 * DAY, DAY / 4, 2 * DAY),
        (365.25 * DAY, 6 * DAY, 183 * DAY),
    ):
        if shortest <= seconds < longest:
            return round(cycle / seconds)
    return 1


def default_sizes(freq: str, length: int) -> tuple[int, int]:
    """``(seq_len, pred_len)`` for a series of `length` steps: a season or two ahead, from two or more seasons.

    Hourly and half-hourly series look back over a whole week, so that a weekly pattern is seen.

    They shrink on a short series so that a 7:1:2 split leaves a forecast to validate and two seasons to learn from.
    """
    season = season_length(freq)
    periods, ahead = {1: (12, 4), 4: (4, 1), 5: (8, 2), 7: (8, 2), 12: (3, 1), 24: (8, 2), 48: (8, 2)}.get(
        season, (2, 1)
    )
    pred_len = max(1, min(ahead * season, length // 10))
    return max(2, min(periods * season, LONGEST, int(0.7 * length) // 2)), pred_len


def infer_frequency(times: Any) -> str:
    """The frequency of a sorted index without repeats; gaps are allowed, stamps off the grid are not.

    Raises:
        ValueError: fewer than three stamps, or stamps that fit no regular grid, listed.
    """
    pandas = require("pandas", "series")
    if len(times) < 3:
        raise ValueError(f"times must be at least 3 to infer a frequency, got {len(times)}: give freq")
    whole = pandas.infer_freq(times)
    if whole is not None:
        return whole
    steps = pandas.Series(times[1:] - times[:-1]).value_counts()
    step = steps.index[0]
    for days, candidates in CALENDAR_STEPS:
        for freq in candidates if step >= pandas.Timedelta(days=days) else ():
            if all(offset_of(freq).is_on_offset(time) for time in times):
                return freq
    if step % pandas.Timedelta(days=7) == pandas.Timedelta(0) and step <= pandas.Timedelta(days=28):
        freq = f"{_count(step, 7)}W-{WEEKDAYS[times[0].dayofweek]}"
    elif step == pandas.Timedelta(days=1) and (times.dayofweek < 5).all() and _skips_weekends(times):
        freq = "B"
    elif step % pandas.Timedelta(days=1) == pandas.Timedelta(0):
        freq = f"{_count(step, 1)}D"
    else:
        freq = pandas.tseries.frequencies.to_offset(step).freqstr
    off = times[~times.isin(pandas.date_range(times[0], times[-1], freq=freq))]
    if len(off):
        listed = ", ".join(str(time) for time in off[:5])
        raise ValueError(
            f"times do not lie on a regular grid: most are {step} apart, but {len(off)} are off it, first {listed}"
        )
    return freq


def _skips_weekends(times: Any) -> bool:
    """Whether the series passes over weekends rather than happening to lack them."""
    return bool((times[-1] - times[0]).days >= 7)


def _count(step: Any, days: int) -> str:
    """The multiple of a frequency as pandas writes it: nothing for one."""
    multiple = step // require("pandas", "series").Timedelta(days=days)
    return str(multiple) if multiple > 1 else ""
