"""Moments and closed intervals of time, as ``datetime64[us]``."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import numpy as np

START = np.datetime64("0001-01-01T00:00:00", "us")
END = np.datetime64("9999-12-31T23:59:59.999999", "us")

_PERIODS = (  # directives of strptime, finest first, and the unit of what they name
    (("%f",), "us"),
    (("%S",), "s"),
    (("%M",), "m"),
    (("%H",), "h"),
    (("%d", "%j"), "D"),
    (("%m", "%b", "%B"), "M"),
    (("%Y", "%y"), "Y"),
)


def as_time(value: Any, name: str = "time") -> np.datetime64:
    """A moment from a datetime (UTC when it has a zone), an ISO string or a ``datetime64``.

    Raises:
        ValueError: it is none of these.
    """
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            raise ValueError(f"{name} must be a datetime or an ISO 8601 string, got {value!r}") from None
    if isinstance(value, datetime) and value.tzinfo is not None:
        value = value.astimezone(UTC).replace(tzinfo=None)
    try:
        time: Any = np.datetime64(value, "us")
    except (ValueError, TypeError):
        raise ValueError(f"{name} must be a datetime or an ISO 8601 string, got {value!r}") from None
    if np.isnat(time):
        raise ValueError(f"{name} must be a datetime or an ISO 8601 string, got {value!r}")
    return time


def as_interval(start: Any, stop: Any) -> tuple[np.datetime64, np.datetime64]:
    """A closed interval; None leaves a side open. A date alone as `stop` lasts until its end."""
    begin = START if start is None else as_time(start, "start of the time")
    end: Any = END
    if stop is not None:
        end = as_time(stop, "end of the time")
        if isinstance(stop, str) and len(stop) <= 10:
            end = end + np.timedelta64(1, "D") - np.timedelta64(1, "us")
    if begin > end:
        raise ValueError(f"the time must not end before it starts, got {begin} to {end}")
    return begin, end


def interval_of(text: str, date_format: str) -> tuple[np.datetime64, np.datetime64]:
    """The moments a date in a file name stands for: ``interval_of("201907", "%Y%m")`` is all of July 2019.

    Raises:
        ValueError: the text does not follow the format.
    """
    start = as_time(datetime.strptime(text, date_format))
    for directives, unit in _PERIODS:
        if any(directive in date_format for directive in directives):
            after = (start.astype(f"datetime64[{unit}]") + 1).astype("datetime64[us]")
            return start, after - np.timedelta64(1, "us")
    raise ValueError(f"date_format must contain a directive such as %Y%m%d, got {date_format!r}")
