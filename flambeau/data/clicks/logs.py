"""Click logs on disk: CSV, Parquet, libsvm, Criteo, Avazu, KDD 2012 and MovieLens, read in chunks of bounded size."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from flambeau.data.clicks.fields import Field, category, found_kind
from flambeau.data.seeding import derive_seed
from flambeau.extras import require

CHUNK_ROWS = 1 << 16
MAX_LINE = 1 << 20  # characters
CLICKED = {"1": 1.0, "true": 1.0, "yes": 1.0, "y": 1.0, "0": 0.0, "-1": 0.0, "false": 0.0, "no": 0.0, "n": 0.0}


class Chunk(NamedTuple):
    """Some rows of a log: columns by name, and labels 0 or 1."""

    columns: dict[str, list]
    labels: np.ndarray


@dataclass(frozen=True)
class ClickLog:
    """A log that can be read again and again, a chunk at a time.

    Args:
        chunks: each call reads from the beginning.
        fields: how the columns are encoded; a name alone has its kind found in the first chunk. None takes all.
    """

    chunks: Callable[[], Iterator[Chunk]]
    fields: tuple[Field | str, ...] | None = None


def click_log(
    path: str | Path,
    target: str,
    *,
    positive: str | None = None,
    categorical: Sequence[str] = (),
    sets: Sequence[str] = (),
    min_count: int = 1,
    fields: Sequence[Field | str] | None = None,
    chunk_rows: int = CHUNK_ROWS,
) -> ClickLog:
    """A CSV file (comma, semicolon or tab, with a header), a Parquet file or a libsvm file of any size.

    In Parquet a column of lists is a set; in CSV name it in `sets`. In a libsvm file
    (``.svm``, ``.libsvm``, ``.ffm``) ``label index:value ...`` has the same number of entries in each row and the k-th
    is field k, as in the files of the AutoInt authors; ``field:index:value`` names the field itself.

    Args:
        path: the file.
        target: column of the label, for libsvm ignored: 0 or 1, or true/false, yes/no.
        positive: the value of the target that is a click, if it is none of these.
        categorical: columns that are categories although they look like numbers.
        sets: columns of text with several categories, ``|`` between them.
        min_count: categories seen less often in training are rare.
        fields: the columns to use and how, in place of the last three; all but the target if not given.
        chunk_rows: rows in memory at a time.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a malformed file, an unknown column, or a label that is missing or none of the two.
        ModuleNotFoundError: a Parquet file without pyarrow; the message has the pip line.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    if path.suffix.lower() in (".svm", ".libsvm", ".ffm"):
        return ClickLog(partial(_read_libsvm, path, chunk_rows), None if fields is None else tuple(fields))
    read = partial(_read_parquet if path.suffix.lower() in (".parquet", ".pq") else _read_csv, path, chunk_rows)
    first = next(read(), None)
    if first is None:
        raise ValueError(f"{path} has no rows")
    for name in (target, *categorical, *sets):
        if name not in first:
            raise ValueError(f"{path} has no column {name!r}; it has {', '.join(first)}")
    if fields is None:
        kinds: dict[str, Any] = dict.fromkeys(categorical, "categorical") | dict.fromkeys(sets, "set")
        names = [name for name in first if name != target]
        fields = [Field(name, kinds.get(name) or found_kind(name, first[name]), min_count) for name in names]

    def chunks() -> Iterator[Chunk]:
        start = 0
        for columns in read():
            labels = columns.pop(target)
            yield Chunk(columns, click_labels(labels, positive=positive, name=target, first_row=start))
            start += len(labels)

    return ClickLog(chunks, tuple(fields))


def criteo(path: str | Path, *, chunk_rows: int = CHUNK_ROWS) -> ClickLog:
    """Criteo's ``train.txt`` or a ``day_N``: tab-separated label, 13 counts I1 ..., 26 categories C1 ..., no header.

    As in AutoInt (section 5.1.1): categories seen at most 10 times are rare, counts z > 2 become ``floor(log(z)^2)``.
    """
    numbers = [Field(f"I{place}", "numeric", scale="log2") for place in range(1, 14)]
    categories = [Field(f"C{place}", min_count=11) for place in range(1, 27)]
    names = ["label", *(one.name for one in (*numbers, *categories))]
    return _without_header(path, names, "label", [*numbers, *categories], chunk_rows)


def kdd2012(path: str | Path, *, chunk_rows: int = CHUNK_ROWS) -> ClickLog:
    """KDD Cup 2012 track 2, ``training.txt``: one row a line, label 1 if there was any click.

    The counts Impression, Depth and Position are numbers, scaled as Criteo's; categories seen fewer than 10 times are
    rare. Gender and age are added if ``userid_profile.txt`` lies beside the file: 13 fields, as in AutoInt.
    """
    names = (
        "Click Impression DisplayURL AdID AdvertiserID Depth Position QueryID KeywordID TitleID DescriptionID UserID"
    )
    numbers = ("Impression", "Depth", "Position")
    fields = [
        Field(name, "numeric", scale="log2") if name in numbers else Field(name, min_count=10)
        for name in names.split()[1:]
    ]
    log = _without_header(path, names.split(), "Click", fields, chunk_rows, any_count=True)
    profile = Path(path).parent / "userid_profile.txt"
    if not profile.is_file():
        return log

    def chunks() -> Iterator[Chunk]:
        people = {row[0]: row[1:3] for row in _rows(profile, "\t")}
        for columns, labels in log.chunks():
            found = [people.get(user, ("", "")) for user in columns["UserID"]]
            yield Chunk({**columns, "Gender": [one[0] for one in found], "Age": [one[1] for one in found]}, labels)

    return ClickLog(chunks, (*fields, Field("Gender"), Field("Age")))


def avazu(path: str | Path, *, chunk_rows: int = CHUNK_ROWS) -> ClickLog:
    """Avazu's ``train.csv``: 22 categorical fields, rare below 5. The id of the impression is left out: it is unique.

    The hour (``YYMMDDHH``) becomes the hour of the day, since a date of the past never comes again.
    """

    def chunks() -> Iterator[Chunk]:
        for columns, labels in log.chunks():
            yield Chunk({**columns, "hour": [cell[-2:] for cell in columns["hour"]]}, labels)

    log = click_log(path, "click", chunk_rows=chunk_rows)
    names = [one if isinstance(one, str) else one.name for one in log.fields or ()]
    if "hour" not in names:
        raise ValueError(f"{path} has no column 'hour'; it has {', '.join(names)}")
    return ClickLog(chunks, tuple(Field(name, min_count=5) for name in names if name != "id"))


def movielens(folder: str | Path, *, chunk_rows: int = CHUNK_ROWS) -> ClickLog:
    """MovieLens-1M (``users.dat``, ``movies.dat``, ``ratings.dat``) with AutoInt's seven fields and labels.

    Gender, age, occupation, zip code, genres (a set of at most 6), the decade of release up to 1969 and the year from
    then on, and the time of the rating scaled to [0, 1]; there is no id of user or film. A rating above 3 is 1, below 3
    is 0, and 3 is left out.
    """
    folder = Path(folder)
    for name in ("users.dat", "movies.dat", "ratings.dat"):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} has no {name}")
    sets = Field("genres", "set", members=6)
    categories = [Field(name) for name in ("gender", "age", "occupation", "zip", "year")]

    def chunks() -> Iterator[Chunk]:
        users = {row[0]: row[1:] for row in _rows(folder / "users.dat", "::", 5)}
        movies = {row[0]: (_release(row[1]), row[2]) for row in _rows(folder / "movies.dat", "::", 3)}
        ratings = (row for row in _rows(folder / "ratings.dat", "::", 4) if row[2] != "3")
        while rows := list(islice(ratings, chunk_rows)):
            try:
                people, films = [users[row[0]] for row in rows], [movies[row[1]] for row in rows]
            except KeyError as error:
                raise ValueError(f"{folder / 'ratings.dat'} rates with the unknown id {error}") from None
            gender, age, occupation, zips = zip(*people)
            columns: dict[str, Any] = dict(gender=gender, age=age, occupation=occupation, zip=zips)
            columns |= dict(year=[film[0] for film in films], genres=[film[1] for film in films])
            columns["time"] = [int(row[3]) for row in rows]
            yield Chunk(columns, np.array([row[2] in "45" for row in rows], np.float32))

    return ClickLog(chunks, (*categories, sets, Field("time", "numeric", scale="minmax")))


def split_parts(log: ClickLog, *, parts: int = 10, seed: int = 0) -> Iterator[tuple[Chunk, np.ndarray]]:
    """The chunks with the part, 0 to `parts` - 1, of each row; the same at every call with one seed.

    Stratified without holding the log: of every `parts` rows of a label in a row, each goes to another part. AutoInt
    tests on part 0, stops by part 1 and trains on the others.
    """
    rng = np.random.default_rng(derive_seed(seed, "split"))
    waiting: dict[float, np.ndarray] = {0.0: np.empty(0, np.int64), 1.0: np.empty(0, np.int64)}
    for chunk in log.chunks():
        part = np.empty(len(chunk.labels), np.int64)
        for label in (0.0, 1.0):
            rows = np.flatnonzero(chunk.labels == label)
            blocks = max(0, -(-(len(rows) - len(waiting[label])) // parts))
            drawn = rng.permuted(np.tile(np.arange(parts), (blocks, 1)), axis=1).ravel()
            part[rows], waiting[label] = np.split(np.concatenate([waiting[label], drawn]), [len(rows)])
        yield chunk, part


def click_labels(
    cells: Sequence[Any] | np.ndarray, *, positive: str | None = None, name: str = "label", first_row: int = 0
) -> np.ndarray:
    """Labels as float32 zeros and ones.

    Raises:
        ValueError: a missing (NaN) label, or one that is none of the two; the message names the column and the row.
    """
    labels = np.empty(len(cells), np.float32)
    known: dict[Any, float] = {}
    for row, cell in enumerate(cells):
        if cell not in known:
            key = category(cell)
            if key is None:
                raise ValueError(f"column {name!r}, row {first_row + row}: the label is missing (NaN)")
            if positive is None and key.lower() not in CLICKED:
                raise ValueError(
                    f"column {name!r}, row {first_row + row}: expected a label such as 0 or 1, got {cell!r} (name the "
                    "value that is a click with positive=...)"
                )
            known[cell] = float(key == positive) if positive is not None else CLICKED[key.lower()]
        labels[row] = known[cell]
    return labels


def _release(title: str) -> str:
    """The year in ``Toy Story (1995)``, or the decade of films before 1970, as AutoInt groups them."""
    year = title.rsplit("(", 1)[-1].rstrip(") ")
    if not year.isdigit():
        return ""
    return year if int(year) >= 1970 else f"{max(int(year), 1920) // 10 * 10}s"


def _without_header(
    path: str | Path, names: list[str], target: str, fields: list[Field], chunk_rows: int, *, any_count: bool = False
) -> ClickLog:
    """A tab-separated file without a header line; `any_count` makes counts of clicks to labels."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")

    def chunks() -> Iterator[Chunk]:
        start = 0
        rows = _rows(path, "\t", len(names))
        while part := list(islice(rows, chunk_rows)):
            columns: dict[str, list] = {name: list(cells) for name, cells in zip(names, zip(*part))}
            labels = columns.pop(target)
            if any_count:
                labels = ["0" if cell == "0" else "1" for cell in labels]
            yield Chunk(columns, click_labels(labels, name=target, first_row=start))
            start += len(part)

    return ClickLog(chunks, tuple(fields))


def _rows(path: Path, delimiter: str, cells: int | None = None) -> Iterator[list[str]]:
    """The lines of a file, split; MovieLens is in Latin 1."""
    with path.open(encoding="utf-8" if delimiter == "\t" else "latin-1", newline="\n") as file:
        for number, line in enumerate(iter(lambda: file.readline(MAX_LINE), ""), 1):
            row = line.rstrip("\r\n").split(delimiter)
            if cells is not None and len(row) != cells:
                raise ValueError(f"{path}, line {number}: expected {cells} cells, got {len(row)}")
            yield row


def _read_csv(path: Path, chunk_rows: int) -> Iterator[dict[str, list]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        header = file.readline(MAX_LINE)
        delimiter = max(",;\t", key=header.count)
        names = [name.strip() for name in next(csv.reader([header], delimiter=delimiter), [])]
        if not names or not all(names) or len(set(names)) != len(names):
            raise ValueError(f"{path}, line 1: expected distinct column names, got {names}")
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        rows: list[list[str]] = []
        try:
            for row in reader:
                if row and len(row) != len(names):
                    raise ValueError(
                        f"{path}, line {reader.line_num + 1}: {len(row)} cells, but the header has {len(names)}"
                    )
                if row:
                    rows.append(row)
                if len(rows) == chunk_rows:
                    yield {name: list(cells) for name, cells in zip(names, zip(*rows))}
                    rows = []
        except csv.Error as error:
            raise ValueError(f"{path}, line {reader.line_num + 1}: {error}") from None
        if rows:
            yield {name: list(cells) for name, cells in zip(names, zip(*rows))}


def _read_parquet(path: Path, chunk_rows: int) -> Iterator[dict[str, list]]:
    parquet = require("pyarrow.parquet", "tabular")
    import pyarrow

    try:
        file = parquet.ParquetFile(path)
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{path} is no Parquet file: {error}") from None
    with file:
        for batch in file.iter_batches(chunk_rows):
            yield {name: column.to_pylist() for name, column in zip(batch.schema.names, batch.columns)}


def _read_libsvm(path: Path, chunk_rows: int) -> Iterator[Chunk]:
    """Columns ``field_0``, ... of numbers where the first chunk has one index only, else of indices as categories.

    A category with value 0 is a missing one.
    """
    numeric: dict[str, bool] = {}
    start = 0
    rows = (line for line in _rows(path, " ") if line != [""])
    while part := list(islice(rows, chunk_rows)):
        entries: dict[str, list[tuple[str, float]]] = {}
        for row, (_, *cells) in enumerate(part):
            for place, cell in enumerate(filter(None, cells)):
                *named, index, value = [str(place), *cell.split(":")][-3:]
                entry = index, _finite(value, path, start + row)
                entries.setdefault(f"field_{named[0] if named else place}", []).append(entry)
            if any(len(column) != row + 1 for column in entries.values()):
                raise ValueError(f"{path}, row {start + row}: expected one entry for each of {len(entries)} fields")
        for name, column in entries.items():
            numeric.setdefault(name, len({index for index, _ in column}) == 1)
        if entries.keys() != numeric.keys():
            raise ValueError(f"{path}, row {start}: expected the fields {', '.join(numeric)}, got {', '.join(entries)}")
        columns: dict[str, list] = {
            name: [value if numeric[name] else f"#{index}" if value else None for index, value in column]
            for name, column in entries.items()
        }
        yield Chunk(columns, click_labels([row[0] for row in part], first_row=start))
        start += len(part)


def _finite(text: str, path: Path, row: int) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{path}, row {row}: expected index:value with a finite number, got {text!r}")
    return value
