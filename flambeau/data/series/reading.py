"""Series from CSV and Parquet files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flambeau.data.series.frame import TimeSeries, series_from_frame
from flambeau.extras import require

LIMIT = 2 << 30


def read_frame(path: str | Path) -> Any:
    """A CSV (separated by comma, semicolon or tab) or Parquet file as a frame; the cells of a CSV stay text.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another suffix, over 2 GiB, an empty file, or a row with more fields than the header, with its line.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    if path.stat().st_size > LIMIT:
        raise ValueError(f"{path}: {path.stat().st_size} bytes, more than the {LIMIT} that are read")
    pandas = require("pandas", "series")
    if path.suffix.lower() in (".parquet", ".pq"):
        require("pyarrow", "series")
        try:
            return pandas.read_parquet(path)
        except (ValueError, OSError) as error:
            raise ValueError(f"{path}: not a Parquet file ({error})") from None
    if path.suffix.lower() not in (".csv", ".tsv", ".txt"):
        raise ValueError(f"{path}: expected .csv, .tsv, .txt or .parquet, got {path.suffix!r}")
    try:
        with path.open(encoding="utf-8-sig") as file:
            header = file.readline()
        separator = max(",;\t", key=header.count)
        frame = pandas.read_csv(
            path, sep=separator, dtype=str, skip_blank_lines=False, skipinitialspace=True, encoding="utf-8-sig"
        )
    except pandas.errors.EmptyDataError:
        raise ValueError(f"{path}: empty") from None
    except (pandas.errors.ParserError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: {error}".strip()) from None
    frame.columns = [str(name).strip() for name in frame.columns]
    return frame.dropna(how="all")  # blank lines; the index still counts them, so that messages give the file's lines


def read_series(
    path: str | Path,
    target: str | Sequence[str] | None = None,
    *,
    date: str | None = None,
    id: str | None = None,
    inputs: Sequence[str] = (),
    known: Sequence[str] = (),
    freq: str | None = None,
) -> list[TimeSeries]:
    """The series of a CSV or Parquet file; arguments as of :func:`series_from_frame`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: what is wrong, with the file, line and column.
    """
    frame = read_frame(path)
    if len(frame) < 3:
        raise ValueError(f"{path}: {len(frame)} rows, at least 3 are needed")
    lines = frame.index.to_numpy() if str(path).lower().endswith((".csv", ".tsv", ".txt")) else None

    def where(row: int) -> str:
        return f"row {row}" if lines is None else f"line {lines[row] + 2}"

    if lines is not None:
        frame = frame.reset_index(drop=True)
    try:
        return series_from_frame(frame, target, date=date, id=id, inputs=inputs, known=known, freq=freq, where=where)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
