"""Time series on a regular grid, from a pandas frame: missing steps become NaN, ambiguous ones are refused."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from flambeau.data.series.frequency import infer_frequency, offset_of
from flambeau.extras import require

DATE_NAMES = ("date", "ds", "datetime", "timestamp", "time", "datum", "utc")
LISTED = 6


@dataclass(frozen=True)
class TimeSeries:
    """One series, or several columns that share their stamps.

    Attributes:
        times: ``pandas.DatetimeIndex`` without gaps, in UTC if the source had time zones.
        freq: its pandas frequency.
        targets: what is forecast, float ``[time, target]``; NaN where missing.
        inputs: columns whose future is unknown, float ``[time, input]``; NaN where missing.
        known: columns known in advance, float ``[time + ahead, known]``, complete; they may reach past the end.
        target_names, input_names, known_names: names of the columns.
        id: name of the series among several.
        date_name, id_name: columns of the stamps and of the ids in the source.
    """

    times: Any
    freq: str
    targets: np.ndarray
    target_names: tuple[str, ...]
    inputs: np.ndarray
    input_names: tuple[str, ...]
    known: np.ndarray
    known_names: tuple[str, ...]
    id: str = ""
    date_name: str = "date"
    id_name: str = "unique_id"

    def __len__(self) -> int:
        return len(self.times)


def series_from_frame(
    frame: Any,
    target: str | Sequence[str] | None = None,
    *,
    date: str | None = None,
    id: str | None = None,
    inputs: Sequence[str] = (),
    known: Sequence[str] = (),
    freq: str | None = None,
    where: Callable[[int], str] = "row {}".format,
) -> list[TimeSeries]:
    """The series of a frame: one, or one for each value of the column `id`.

    A frame with the columns ``unique_id``, ``ds`` and ``y`` (the long format of Nixtla) needs no names.

    Args:
        frame: ``pandas.DataFrame``, rows in the order of time within a series.
        target: column(s) to forecast; all other numeric columns if it is not given.
        date: column of the stamps; the index, a usual name, or the first column of dates if it is not given.
        id: column that names the series of a row.
        inputs: columns that help and whose future is unknown.
        known: columns that help and are known in advance. Rows at the end that have only these are the future.
        freq: pandas frequency; inferred if it is not given.
        where: describes the row of an index, for messages.

    Raises:
        ValueError: an unknown column (with the nearest names), a cell that is no finite number or date, stamps that
            repeat (a change from summer time), go back or lie off the grid; with rows, columns and what was got.
    """
    if id is None and "unique_id" in frame.columns:
        id = "unique_id"
    if target is None and "y" in frame.columns:
        target = "y"
    stamps, date = _stamps(frame, date, where)
    names = [str(name) for name in frame.columns]
    taken = {date, id, *inputs, *known}
    for column in (
        (target, *inputs, *known, id) if isinstance(target, str) or target is None else (*target, *inputs, *known, id)
    ):
        if column is not None and column not in frame.columns:
            raise ValueError(f"no column {column!r}{_nearest(column, names)}; there are {', '.join(names)}")
    if target is None:
        target = [name for name in frame.columns if name not in taken and _is_numeric(frame[name])]
        if not target:
            raise ValueError(f"no numeric column to forecast; there are {', '.join(names)}")
    targets = (target,) if isinstance(target, str) else tuple(target)
    columns = {name: _numbers(frame[name], name, where) for name in (*targets, *inputs, *known)}
    groups = {"": np.arange(len(frame))} if id is None else frame.groupby(id, sort=False).indices
    return [
        _on_grid(stamps[rows], {name: values[rows] for name, values in columns.items()}, rows,
                 targets, tuple(inputs), tuple(known), freq, str(name), date, id or "unique_id", where)
        for name, rows in groups.items()
    ]  # fmt: skip


def _on_grid(
    stamps: Any,
    columns: dict[str, np.ndarray],
    rows: np.ndarray,
    targets: tuple[str, ...],
    inputs: tuple[str, ...],
    known: tuple[str, ...],
    freq: str | None,
    id: str,
    date: str,
    id_name: str,
    where: Callable[[int], str],
) -> TimeSeries:
    pandas = require("pandas", "series")
    of = f" of series {id!r}" if id else ""
    repeated = np.flatnonzero(stamps.duplicated(keep=False))
    if len(repeated):
        listed = "; ".join(f"{where(rows[i])}: {stamps[i]}" for i in repeated[:LISTED])
        raise ValueError(
            f"column {date!r}: {len(repeated)} stamps{of} repeat ({listed}). Drop the duplicates, name the column of "
            "the series with id or, if this is the hour at the end of summer time, give stamps in UTC"
        )
    back = np.flatnonzero(stamps[1:] < stamps[:-1]) + 1
    if len(back):
        listed = "; ".join(f"{where(rows[i])}: {stamps[i]} after {stamps[i - 1]}" for i in back[:LISTED])
        raise ValueError(f"column {date!r}: stamps{of} go back in time ({listed}); sort the rows by time")
    if freq is None:
        freq = infer_frequency(stamps)
    grid = pandas.date_range(stamps[0], stamps[-1], freq=offset_of(freq))
    off = np.flatnonzero(~stamps.isin(grid))
    if len(off):
        listed = "; ".join(f"{where(rows[i])}: {stamps[i]}" for i in off[:LISTED])
        raise ValueError(f"column {date!r}: {len(off)} stamps{of} are not on the grid of freq {freq!r} ({listed})")
    if len(grid) > 20 * len(stamps) + 1000:
        raise ValueError(
            f"column {date!r}: {len(stamps)} stamps{of} on a grid of {len(grid)} steps of {freq!r}: give a longer freq"
        )
    table = pandas.DataFrame(columns, index=stamps).reindex(grid)
    known_table = table[list(known)].interpolate(limit_direction="both")
    for name in known:
        if known_table[name].isna().any():
            raise ValueError(f"column {name!r}{of} is known in advance but has no value at all")
    present = table[[*targets, *inputs]].notna().any(axis=1).to_numpy()
    length = int(present.nonzero()[0][-1]) + 1 if known and present.any() else len(grid)
    return TimeSeries(
        times=grid[:length],
        freq=freq,
        targets=table[list(targets)].to_numpy(dtype=float)[:length],
        target_names=targets,
        inputs=table[list(inputs)].to_numpy(dtype=float).reshape(len(grid), len(inputs))[:length],
        input_names=inputs,
        known=known_table.to_numpy(dtype=float).reshape(len(grid), len(known)),
        known_names=known,
        id=id,
        date_name=date,
        id_name=id_name,
    )


def _stamps(frame: Any, date: str | None, where: Callable[[int], str]) -> tuple[Any, str]:
    """The stamps of all rows, and the name of their column."""
    pandas = require("pandas", "series")
    names = [str(name) for name in frame.columns]
    if date is None and isinstance(frame.index, pandas.DatetimeIndex):
        return _utc(frame.index), frame.index.name or "index"
    if date is None:
        usual = [name for name in frame.columns if str(name).lower() in DATE_NAMES]
        date = usual[0] if usual else next((name for name in frame.columns if _is_dates(frame[name])), None)
        if date is None:
            raise ValueError(f"no column of dates found; name it with date. There are {', '.join(names)}")
    if date not in frame.columns:
        raise ValueError(f"no column {date!r}{_nearest(date, names)}; there are {', '.join(names)}")
    cells = frame[date]
    if pandas.api.types.is_numeric_dtype(cells):
        cells = cells.astype("Int64").astype(str)
    text = pandas.api.types.is_string_dtype(cells) or cells.dtype == object
    zoned = text and cells.astype(str).str.contains(r"(?:Z|[+-]\d\d:?\d\d)$", regex=True).any()
    stamps = pandas.to_datetime(cells, errors="coerce", utc=bool(zoned))
    if text and cells.astype(str).str.match(r"\d\d?[./-]\d\d?[./-]\d{4}").any():
        # 02/01/2024 is read in the order that gives dates for all rows, and then the steadier steps.
        other = pandas.to_datetime(cells, errors="coerce", utc=bool(zoned), dayfirst=True)
        stamps = min((stamps, other), key=lambda found: (found.isna().sum(), _unsteadiness(found)))
    bad = np.flatnonzero(stamps.isna().to_numpy())
    if len(bad):
        listed = "; ".join(f"{where(i)}: {cells.iloc[i]!r}" for i in bad[:LISTED])
        raise ValueError(f"column {date!r}: {len(bad)} cells are not dates in the format of the first ({listed})")
    return _utc(pandas.DatetimeIndex(stamps)), str(date)


def _unsteadiness(stamps: Any) -> float:
    steps = stamps.diff().dt.total_seconds().abs()
    return float(steps.std() / max(steps.mean(), 1e-9))


def _utc(stamps: Any) -> Any:
    return stamps if stamps.tz is None else stamps.tz_convert("UTC").tz_localize(None)


def _numbers(cells: Any, name: str, where: Callable[[int], str]) -> np.ndarray:
    """The column as floats, NaN where a cell is empty."""
    pandas = require("pandas", "series")
    numbers = pandas.to_numeric(cells, errors="coerce").to_numpy(dtype=float, na_value=np.nan)
    bad = np.flatnonzero((np.isnan(numbers) & cells.notna().to_numpy()) | np.isinf(numbers))
    if len(bad):
        listed = "; ".join(f"{where(i)}: {cells.iloc[i]!r}" for i in bad[:LISTED])
        raise ValueError(f"column {name!r}: {len(bad)} cells are not finite numbers ({listed})")
    if np.isnan(numbers).all():
        raise ValueError(f"column {name!r} has no value at all")
    return numbers


def _is_numeric(cells: Any) -> bool:
    """Whether most cells that are not empty are numbers; the few that are not are then reported, not skipped."""
    present = cells.dropna()
    return len(present) > 0 and require("pandas", "series").to_numeric(present, errors="coerce").notna().mean() > 0.5


def _is_dates(cells: Any) -> bool:
    pandas = require("pandas", "series")
    first = cells.dropna().iloc[:5]
    if pandas.api.types.is_datetime64_any_dtype(first):
        return True
    return (
        not _is_numeric(first)
        and len(first) > 0
        and pandas.to_datetime(first.astype(str), errors="coerce", format="mixed").notna().all()
    )


def _nearest(name: str, names: Sequence[str]) -> str:
    lower = {n.lower(): n for n in names}
    close = [lower[match] for match in difflib.get_close_matches(str(name).lower(), lower, n=3, cutoff=0.5)]
    return f" (did you mean {' or '.join(map(repr, close))}?)" if close else ""
