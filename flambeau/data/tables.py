"""Tables of numbers and categories with one target, embedded or read from CSV and Parquet files."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from flambeau.data.seeding import derive_seed
from flambeau.data.text.plain import text_file
from flambeau.extras import require

MISSING = frozenset({"", "na", "n/a", "nan", "null", "none", "?"})
MAX_CELLS = 2**29  # 2 GiB as float32
Kind = Literal["numeric", "categorical"]


@dataclass(frozen=True)
class Table:
    """Rows of features with a target each.

    Args:
        features: float32; a category is its position in `categories`; a missing value is NaN.
        target: int64 classes, or float32 values.
        names: of the feature columns.
        kinds: ``"numeric"`` or ``"categorical"``, for each column.
        classes: names of the target's classes; None if the target is a number.
        categories: column name -> its categories, for each categorical column.

    Raises:
        ValueError: shapes that do not fit each other.
    """

    features: Float[Tensor, "rows columns"]
    target: Tensor
    names: list[str]
    kinds: list[Kind]
    classes: list[str] | None = None
    categories: dict[str, list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.features.ndim != 2 or self.features.dtype != torch.float32:
            raise ValueError(f"features must be float32 [N, F], got {self.features.dtype} {list(self.features.shape)}")
        if self.target.shape != self.features.shape[:1]:
            raise ValueError(f"target must have shape [{len(self.features)}], got {list(self.target.shape)}")
        if not len(self.names) == len(self.kinds) == self.features.shape[1]:
            raise ValueError(
                f"names and kinds must have one entry for each of {self.features.shape[1]} columns, "
                f"got {len(self.names)} and {len(self.kinds)}"
            )

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, rows: int | slice | Sequence[int] | Tensor) -> Any:
        """With an integer ``(features, target)`` of that row; otherwise those rows as a table of their own."""
        if isinstance(rows, int):
            return self.features[rows], self.target[rows]
        index = rows if isinstance(rows, slice) else torch.as_tensor(rows)
        return Table(self.features[index], self.target[index], self.names, self.kinds, self.classes, self.categories)

    def split(self, fractions: Sequence[float], seed: int = 0) -> tuple[Table, ...]:
        """Random disjoint parts; with classes, each class in the same proportions.

        Raises:
            ValueError: fractions that are not positive or sum to more than 1, or a part that would be empty.
        """
        if not fractions or min(fractions) <= 0 or sum(fractions) > 1 + 1e-9:
            raise ValueError(f"fractions must be positive and sum to at most 1, got {tuple(fractions)}")
        rng = np.random.default_rng(derive_seed(seed, "split"))
        classes = np.zeros(len(self)) if self.classes is None else self.target.numpy()
        order = rng.permutation(len(self))
        place = np.empty(len(self))  # of each row within its class, in (0, 1)
        for value in np.unique(classes):
            members = order[classes[order] == value]
            place[members] = (np.arange(len(members)) + 0.5) / len(members)
        part_of = np.searchsorted(np.cumsum(fractions), place, side="right")
        parts = [order[part_of[order] == part] for part in range(len(fractions))]
        for fraction, rows in zip(fractions, parts):
            if not len(rows):
                raise ValueError(f"the part of {fraction:g} would be empty: {len(self)} rows are too few")
        return tuple(self[torch.from_numpy(rows)] for rows in parts)


def breast_cancer() -> Table:
    """569 tumours, 30 numeric features of cell nuclei, malignant or benign (scikit-learn; Wolberg et al. 1995)."""
    from sklearn.datasets import load_breast_cancer

    return _bundled(load_breast_cancer())


def iris() -> Table:
    """150 flowers, 4 lengths in cm, three species (scikit-learn; Fisher 1936)."""
    from sklearn.datasets import load_iris

    return _bundled(load_iris())


def wine() -> Table:
    """178 wines, 13 numeric chemical analyses, three cultivators (scikit-learn; UCI 1991)."""
    from sklearn.datasets import load_wine

    return _bundled(load_wine())


def diabetes() -> Table:
    """442 patients, 10 features in their own units, disease progression after a year (Efron et al. 2004)."""
    from sklearn.datasets import load_diabetes

    return _bundled(load_diabetes(scaled=False))


def read_table(
    path: str | Path,
    target: str,
    *,
    categorical: Sequence[str] = (),
    task: Literal["classification", "regression"] | None = None,
) -> Table:
    """A table from a CSV file (comma, semicolon or tab, with a header line) or a Parquet file (``.parquet``).

    A CSV column is numeric if at least 90 % of its values are numbers; a cell of it that is none is an error, not a
    category. Empty cells, ``NA``, ``NaN``, ``null``, ``None`` and ``?`` are missing values.

    Args:
        path: the file.
        target: name of the target column; it may not have missing values.
        categorical: columns that are categories although they look like numbers.
        task: what the target is; None decides: classes if it is text or at most 20 whole numbers, else a value.

    Raises:
        ValueError: a malformed file, an unknown column, or a cell that is no number; the message names file, line and
            column.
        ModuleNotFoundError: a Parquet file without pyarrow; the message has the pip line.
    """
    path = Path(path)
    columns = _read_parquet(path) if path.suffix.lower() in (".parquet", ".pq") else _read_csv(path)
    for name in (target, *categorical):
        if name not in columns.cells:
            raise ValueError(f"{path} has no column {name!r}; it has {', '.join(columns.cells)}")
    if task not in (None, "classification", "regression"):
        raise ValueError(f"task must be 'classification', 'regression' or None, got {task!r}")
    values, classes = _target(columns, target, task, target in categorical)
    names = [name for name in columns.cells if name != target]
    if not names:
        raise ValueError(f"{path} has no column beside the target {target!r}")
    features = torch.empty(len(values), len(names))
    kinds: list[Kind] = []
    categories: dict[str, list[str]] = {}
    for position, name in enumerate(names):
        if name in categorical or not columns.is_numeric(name):
            codes, categories[name] = columns.codes(name)
            kinds.append("categorical")
            features[:, position] = torch.from_numpy(codes)
        else:
            kinds.append("numeric")
            features[:, position] = torch.from_numpy(columns.numbers(name))
    return Table(features, values, names, kinds, classes, categories)


@dataclass
class _Columns:
    """Cells by column name as text (None where missing), and the line (or row) of the file that each one is on."""

    path: Path
    cells: dict[str, list[str | None]]
    lines: list[int]
    unit: Literal["line", "row"] = "line"

    def is_numeric(self, name: str) -> bool:
        present = [cell for cell in self.cells[name] if cell is not None]
        return sum(_number(cell) is not None for cell in present) >= 0.9 * len(present)

    def numbers(self, name: str) -> np.ndarray:
        values = np.empty(len(self.lines))
        for row, cell in enumerate(self.cells[name]):
            value = math.nan if cell is None else _number(cell)
            if value is None:
                raise ValueError(
                    f"{self.path}, {self.unit} {self.lines[row]}, column {name!r}: expected a number as in the rest "
                    f"of the column, got {cell!r} (if the column holds categories, name it in categorical)"
                )
            values[row] = value
        return values

    def codes(self, name: str) -> tuple[np.ndarray, list[str]]:
        names = sorted({cell for cell in self.cells[name] if cell is not None})
        code = {category: position for position, category in enumerate(names)}
        return np.array([math.nan if cell is None else code[cell] for cell in self.cells[name]]), names


def _target(columns: _Columns, name: str, task: str | None, categorical: bool) -> tuple[Tensor, list[str] | None]:
    for line, cell in zip(columns.lines, columns.cells[name]):
        if cell is None:
            raise ValueError(f"{columns.path}, {columns.unit} {line}, column {name!r}: the target has no value")
    if task == "regression" or not (task == "classification" or categorical or not columns.is_numeric(name)):
        numbers = columns.numbers(name)
        whole = np.unique(numbers)
        if task == "regression" or len(whole) > 20 or (whole != np.round(whole)).any():
            return torch.from_numpy(numbers).float(), None
        classes = [str(int(value)) for value in whole]
        return torch.from_numpy(np.searchsorted(whole, numbers)), classes
    codes, classes = columns.codes(name)
    return torch.from_numpy(codes.astype(np.int64)), classes


def _number(cell: str) -> float | None:
    """The finite number that `cell` is, or None. Python's own ``1_000`` is not a number in a file."""
    if "_" in cell:
        return None
    try:
        value = float(cell)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _read_csv(path: Path) -> _Columns:
    text = text_file(path)
    header = text.partition("\n")[0]
    delimiter = max(",;\t", key=header.count)
    reader = csv.reader(io.StringIO(text), delimiter=delimiter, strict=True)
    rows: list[list[str]] = []
    lines: list[int] = []
    names: list[str] = []
    line = 1
    try:
        for row in reader:
            started, line = line, reader.line_num + 1  # a quoted cell may hold line breaks
            if not any(cell.strip() for cell in row):
                continue
            if not names:
                names = _header(path, row)
                continue
            if len(row) != len(names):
                raise ValueError(f"{path}, line {started}: {len(row)} cells, but the header has {len(names)}")
            rows.append(row)
            lines.append(started)
            if len(rows) * len(names) > MAX_CELLS:
                raise ValueError(f"{path} has more than {MAX_CELLS} cells at line {started}")
    except csv.Error as error:
        raise ValueError(f"{path}, line {line}: {error}") from None
    if not rows:
        raise ValueError(f"{path} has no rows below its header")
    cells: dict[str, list[str | None]] = {}
    for name, column in zip(names, zip(*rows)):
        stripped = [cell.strip() for cell in column]
        cells[name] = [None if cell.lower() in MISSING else cell for cell in stripped]
    return _Columns(path, cells, lines)


def _header(path: Path, row: list[str]) -> list[str]:
    names = [name.strip() for name in row]
    for position, name in enumerate(names, 1):
        if not name:
            raise ValueError(f"{path}, line 1: column {position} has no name")
        if names.index(name) != position - 1:
            raise ValueError(f"{path}, line 1: two columns are named {name!r}")
    return names


def _read_parquet(path: Path) -> _Columns:
    parquet = require("pyarrow.parquet", "tabular")
    import pyarrow

    try:
        file = parquet.ParquetFile(path)
        if file.metadata.num_rows * file.metadata.num_columns > MAX_CELLS:
            raise ValueError(f"{path} has more than {MAX_CELLS} cells")
        table = file.read()
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{path} is no Parquet file: {error}") from None
    if not table.num_rows:
        raise ValueError(f"{path} has no rows")
    cells: dict[str, list[str | None]] = {}
    for name, column in zip(table.column_names, table.columns):
        if pyarrow.types.is_nested(column.type):
            raise ValueError(f"{path}, column {name!r}: expected numbers or text, got {column.type}")
        cells[name] = [_cell(value) for value in column.to_pylist()]
    return _Columns(path, cells, list(range(1, table.num_rows + 1)), "row")


def _cell(value: Any) -> str | None:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    text = str(value).strip()
    return None if text.lower() in MISSING else text


def _bundled(data: Any) -> Table:
    features = torch.from_numpy(np.asarray(data.data, np.float32))
    names = [str(name) for name in data.feature_names]
    kinds: list[Kind] = ["numeric"] * len(names)
    if "target_names" not in data:
        return Table(features, torch.from_numpy(np.asarray(data.target, np.float32)), names, kinds)
    classes = [str(name) for name in data.target_names]
    return Table(features, torch.from_numpy(np.asarray(data.target, np.int64)), names, kinds, classes)
