"""Bands by name: the registry of sensors in ``sensors.toml``."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path


@dataclass(frozen=True)
class Band:
    """name as the sensor's files have it; common name; wavelength of its centre and its width in micrometres (None for
    a radar); ground sampling distance in metres."""

    name: str
    common: str
    center: float | None = None
    width: float | None = None
    gsd: float | None = None


@cache
def sensors() -> dict[str, tuple[Band, ...]]:
    """Every known sensor and its bands in order."""
    tables = tomllib.loads(Path(__file__).with_name("sensors.toml").read_text(encoding="utf-8"))
    return {name: tuple(Band(**band) for band in table["bands"]) for name, table in tables.items()}


def sensor(name: str) -> tuple[Band, ...]:
    """The bands of a sensor.

    Raises:
        ValueError: there is none of that name; the message has the nearest.
    """
    known = sensors()
    if name not in known:
        near = difflib.get_close_matches(name, known, 3, 0.3) or known
        raise ValueError(f"no sensor {name!r} (did you mean {', '.join(near)}?)")
    return known[name]


def common_names(bands: Sequence[str], sensor_name: str | None = None) -> list[str]:
    """What bands are called in common (``"red"``, ``"nir"``), from a sensor's names or such names themselves.

    Raises:
        ValueError: a name that the sensor does not have; without a sensor, one that no sensor has or on whose meaning
            the sensors that have all the bands do not agree.
    """
    choices = sensors() if sensor_name is None else {sensor_name: sensor(sensor_name)}
    readings = {}
    for name, table in choices.items():
        names = {band.name: band.common for band in table} | {band.common: band.common for band in table}
        if all(band in names for band in bands):
            readings[tuple(names[band] for band in bands)] = name
    if len(readings) == 1:
        return list(next(iter(readings)))
    if not readings:
        where = f"the sensor {sensor_name}" if sensor_name else f"one of {', '.join(choices)}"
        raise ValueError(f"bands {list(bands)} are not all bands of {where}")
    raise ValueError(f"bands {list(bands)} mean different things for {', '.join(readings.values())}; say which sensor")
