"""The fields of a tabular record: vocabularies and scales learned from training rows, and rows turned into tensors."""

from __future__ import annotations

import difflib
import hashlib
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from flambeau.data.tables import MISSING
from flambeau.files import read_json, write_json
from flambeau.nn.fields.embedding import FieldEmbedding

Columns = Mapping[str, Any]  # column name -> its cells; a pandas DataFrame is one
MAX_SCHEMA_BYTES = 1 << 30
MAX_ROWS = 1 << 28


@dataclass(frozen=True)
class Field:
    """How one column is encoded.

    Args:
        name: of the column.
        kind: ``"categorical"``, ``"numeric"``, or ``"set"`` for several categories in a cell: a list, a dict of
            weights, or a text with `separator` between the members.
        min_count: categories seen less often in training share the id of rare ones.
        buckets: hash the categories to so many ids instead of keeping a vocabulary.
        scale: of a number: ``"standard"``, ``"minmax"``, ``"log2"`` (``floor(log(z)^2)`` if z > 2, as AutoInt does on
            Criteo), or ``"none"``.
        members: most members of a set that are kept.
        separator: between the members of a set that is written as text.
        dim: length of this field's own embedding, if it should differ from the others'.

    Raises:
        ValueError: a value out of its range.
    """

    name: str
    kind: Literal["categorical", "numeric", "set"] = "categorical"
    min_count: int = 1
    buckets: int | None = None
    scale: Literal["standard", "minmax", "log2", "none"] = "standard"
    members: int = 8
    separator: str = "|"
    dim: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in ("categorical", "numeric", "set"):
            raise ValueError(f"kind of {self.name!r} must be 'categorical', 'numeric' or 'set', got {self.kind!r}")
        if self.scale not in ("standard", "minmax", "log2", "none"):
            raise ValueError(f"scale of {self.name!r} must be standard, minmax, log2 or none, got {self.scale!r}")
        if self.min_count < 1 or (self.buckets is not None and self.buckets < 1) or (self.dim or 1) < 1:
            raise ValueError(f"min_count, buckets and dim of {self.name!r} must be at least 1, got {self}")
        if self.kind == "set" and self.members < 2:
            raise ValueError(f"members of {self.name!r} must be at least 2 (a set of one is categorical)")


@dataclass(frozen=True)
class FieldSchema:
    """Fields fitted to training rows: which id each category has, and how each number is scaled.

    All fields share one space of ids. Each has an id for a missing value; a categorical field one for rare and unknown
    categories, then its own; a numeric field one alone. New categories are appended at the end (:meth:`grow`), so an
    id never changes its meaning.

    Args:
        fields: how each column is encoded.
        first: field -> its id for a missing value. Rare categories have the id behind it.
        vocabularies: field -> category -> id, for categories and sets that are not hashed.
        scales: field -> (shift, factor) of ``(z - shift) * factor``, for numbers.
        rows: number of ids.
    """

    fields: tuple[Field, ...]
    first: dict[str, int]
    vocabularies: dict[str, dict[str, int]] = field(default_factory=dict)
    scales: dict[str, tuple[float, float]] = field(default_factory=dict)
    rows: int = 0

    @classmethod
    def fit(cls, chunks: Columns | Iterable[Columns], fields: Sequence[Field | str] | None = None) -> FieldSchema:
        """Count categories and measure numbers over training rows, which may come in chunks.

        Args:
            chunks: columns, or an iterable of columns that each hold some of the rows.
            fields: those to encode, a name alone having its kind found; all columns of the first chunk if not given.

        Raises:
            ValueError: no rows, an unknown column, a column named twice, or a cell of a numeric column that is no
                number.
        """
        parts: Iterator[Any] = iter([chunks] if _is_columns(chunks) else chunks)
        first = next(parts, None)
        if first is None:
            raise ValueError("chunks: no rows to fit to")
        given = list(first.keys()) if fields is None else list(fields)
        known = [one if isinstance(one, Field) else Field(one, found_kind(one, _column(first, one))) for one in given]
        names = [one.name for one in known]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"fields must be distinct and at least one, got {names}")
        counts: dict[str, Counter[str]] = {one.name: Counter() for one in known if one.kind != "numeric"}
        numbers: dict[str, list[float]] = {
            one.name: [0, 0.0, 0.0, math.inf, -math.inf] for one in known if one.kind == "numeric"
        }
        rows = 0
        part: Columns | None = first
        while part is not None:
            for one in known:
                column = _column(part, one.name)
                rows += len(column)
                if one.kind == "numeric":
                    _measure(numbers[one.name], one, _numbers(column, one))
                elif one.buckets is None:
                    _count(counts[one.name], column, one)
            part = next(parts, None)
        if not rows:
            raise ValueError("chunks: no rows to fit to")
        schema = cls(tuple(known), {})
        place = 0
        for one in known:
            schema.first[one.name] = place
            if one.kind == "numeric":
                schema.scales[one.name] = _scale(one, *numbers[one.name])
                place += 1
            elif one.buckets is not None:
                place += 1 + one.buckets
            else:
                kept = sorted(key for key, count in counts[one.name].items() if count >= one.min_count)
                schema.vocabularies[one.name] = {key: place + 2 + position for position, key in enumerate(kept)}
                place += 2 + len(kept)
        if place > MAX_ROWS:
            raise ValueError(f"{place} ids are more than {MAX_ROWS}; raise min_count or hash with buckets")
        return replace(schema, rows=place)

    @property
    def slots(self) -> tuple[int, ...]:
        """Slots of each field: 1, or the members of a set."""
        return tuple(one.members if one.kind == "set" else 1 for one in self.fields)

    @property
    def row_field(self) -> Int64[Tensor, " rows"]:
        """Position of the field that each id belongs to."""
        owner = torch.empty(self.rows, dtype=torch.int64)
        for position, one in enumerate(self.fields):
            owner[self.first[one.name] : self.first[one.name] + 1 + (one.buckets or (one.kind != "numeric"))] = position
            owner[list(self.vocabularies.get(one.name, {}).values())] = position
        return owner

    def embedding(self, dim: int = 16, *, sparse: bool = False) -> FieldEmbedding:
        """An embedding of these fields; `dim` 1 gives a weight to each id, and fields no lengths of their own."""
        own = {position: one.dim for position, one in enumerate(self.fields) if one.dim is not None and dim > 1}
        return FieldEmbedding(self.row_field, self.slots, dim, field_dims=own, sparse=sparse)

    def encode(
        self, columns: Columns, *, strict: bool = False
    ) -> tuple[Int64[Tensor, "rows slots"], Float32[Tensor, "rows slots"]]:
        """Rows as ids and values, in the order of the fields; what was not seen in training counts as rare.

        Args:
            columns: with every field's column; others are ignored.
            strict: refuse categories that are not in the vocabulary (rare ones, too).

        Raises:
            ValueError: a column that is missing, a number that is none, or with `strict` an unknown category.
        """
        cells = [_column(columns, one.name) for one in self.fields]
        ids = np.empty((len(cells[0]), sum(self.slots)), np.int64)
        values = np.ones(ids.shape, np.float32)
        place = 0
        for one, width, column in zip(self.fields, self.slots, cells):
            if len(column) != len(ids):
                raise ValueError(f"columns differ in length: {one.name!r} has {len(column)} rows, expected {len(ids)}")
            if one.kind == "numeric":
                shift, factor = self.scales[one.name]
                scaled = (_transformed(one, _numbers(column, one)) - shift) * factor
                ids[:, place] = self.first[one.name]
                values[:, place] = np.nan_to_num(scaled, nan=0.0)
            elif one.kind == "categorical":
                ids[:, place] = list(map(self._lookup(one, strict).__getitem__, column))
            else:
                self._encode_sets(one, column, strict, ids[:, place : place + width], values[:, place : place + width])
            place += width
        return torch.from_numpy(ids), torch.from_numpy(values)

    def grow(self, columns: Columns) -> FieldSchema:
        """A schema that also knows the categories that `columns` has often enough; scales and known ids stay.

        A model follows with :func:`~flambeau.training.click_through.grow_model`.
        """
        vocabularies, place = dict(self.vocabularies), self.rows
        for one in self.fields:
            if one.name in vocabularies:
                counts: Counter[str] = Counter()
                _count(counts, _column(columns, one.name), one)
                known = vocabularies[one.name]
                new = sorted(key for key, count in counts.items() if count >= one.min_count and key not in known)
                vocabularies[one.name] = known | {key: place + position for position, key in enumerate(new)}
                place += len(new)
        return replace(self, vocabularies=vocabularies, rows=place)

    def save(self, path: str | os.PathLike) -> None:
        """Write the schema as JSON."""
        write_json(Path(path), {"format": 1, **asdict(self)})

    @classmethod
    def load(cls, path: str | os.PathLike) -> FieldSchema:
        """Read what :meth:`save` wrote.

        Raises:
            ValueError: not such a file, or ids that contradict each other.
        """
        saved = read_json(Path(path), MAX_SCHEMA_BYTES)
        try:
            if saved.pop("format") != 1:
                raise ValueError("another format")
            saved["fields"] = tuple(Field(**one) for one in saved["fields"])
            saved["scales"] = {name: (float(shift), float(by)) for name, (shift, by) in saved["scales"].items()}
            schema = cls(**saved)
            used = [place for ids in schema.vocabularies.values() for place in ids.values()]
            extra = {one.name: 1 if one.kind == "numeric" else 1 + (one.buckets or 1) for one in schema.fields}
            if len(used) + sum(extra.values()) != schema.rows or schema.rows > MAX_ROWS:
                raise ValueError(f"{schema.rows} ids for {len(used)} categories and {sum(extra.values())} others")
            for name, count in extra.items():
                used += range(schema.first[name], schema.first[name] + count)
            if sorted(used) != list(range(schema.rows)):
                raise ValueError("ids that overlap or have gaps")
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is no schema of fields: {error}") from None
        return schema

    def _lookup(self, one: Field, strict: bool) -> _Lookup:
        return _Lookup(one, self.first[one.name], self.vocabularies.get(one.name), strict)

    def _encode_sets(self, one: Field, column: list, strict: bool, ids: np.ndarray, values: np.ndarray) -> None:
        """Fill `ids` and `values` [rows, members]; padding has the missing id and no weight."""
        ids[:] = self.first[one.name]
        values[:] = 0
        lookup = self._lookup(one, strict)
        for row, cell in enumerate(column):
            for slot, (member, weight) in enumerate(_members(cell, one)[: one.members]):
                ids[row, slot], values[row, slot] = lookup[member], weight


class _Lookup(dict):
    """Raw cell -> id, worked out once for each distinct cell."""

    def __init__(self, one: Field, first: int, vocabulary: dict[str, int] | None, strict: bool):
        super().__init__()
        self.field, self.first, self.vocabulary, self.strict = one, first, vocabulary, strict

    def __missing__(self, cell: Any) -> int:
        key = category(cell)
        if key is None:
            found = self.first
        elif self.vocabulary is None:
            assert self.field.buckets is not None
            digest = hashlib.blake2b(f"{self.field.name}\x1f{key}".encode(), digest_size=8).digest()
            found = self.first + 1 + int.from_bytes(digest, "big") % self.field.buckets
        elif key in self.vocabulary:
            found = self.vocabulary[key]
        elif self.strict:
            near = difflib.get_close_matches(key, self.vocabulary, 1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise ValueError(f"column {self.field.name!r}: category {key!r} is not in the vocabulary{hint}")
        else:
            found = self.first + 1
        self[cell] = found
        return found


def category(cell: Any) -> str | None:
    """A cell as the name of its category, None if it is missing; 3 and 3.0 are one category."""
    if isinstance(cell, str):
        cell = cell.strip()
        return None if cell.lower() in MISSING else cell
    if cell is None or cell != cell or str(cell) in ("<NA>", "NaT"):
        return None
    if isinstance(cell, float) and cell.is_integer():
        return str(int(cell))
    return str(cell)


def found_kind(name: str, column: Sequence[Any]) -> Literal["categorical", "numeric", "set"]:
    """The kind of a column without a declared one: lists are sets, text is categorical, numbers are numeric.

    Whole numbers in a column called ``id``, ``..._id`` or ``...ID`` are categories, not quantities.
    """
    present = [cell for cell in column if isinstance(cell, (list, tuple, set, dict)) or category(cell) is not None]
    if any(isinstance(cell, (list, tuple, set, dict)) for cell in present):
        return "set"
    if not present or isinstance(present[0], bool):
        return "categorical"
    numbers = [_number(cell) for cell in present]
    known = [number for number in numbers if number is not None]
    if len(known) < 0.9 * len(present):
        return "categorical"
    names_things = name.lower() == "id" or name.endswith(("_id", "ID", "Id"))
    return "categorical" if names_things and all(number == int(number) for number in known) else "numeric"


def _is_columns(value: Any) -> bool:
    return isinstance(value, Mapping) or (hasattr(value, "columns") and hasattr(value, "keys"))


def _column(columns: Columns, name: str) -> list:
    """The cells of a column as Python values; an array's row becomes a list."""
    if name not in columns:
        near = difflib.get_close_matches(name, [str(known) for known in columns.keys()], 1)
        hint = f" (did you mean {near[0]!r}?)" if near else f"; there are {', '.join(map(str, columns.keys()))}"
        raise ValueError(f"no column {name!r}{hint}")
    cells = columns[name]
    cells = cells.tolist() if hasattr(cells, "tolist") else list(cells)
    return [cell.tolist() if isinstance(cell, np.ndarray) else cell for cell in cells]


def _members(cell: Any, one: Field) -> list[tuple[Any, float]]:
    """The members of a set with their weights; missing members are left out."""
    if isinstance(cell, dict):
        pairs = [(member, float(weight)) for member, weight in cell.items()]
        if any(not 0 <= weight < math.inf for _, weight in pairs):
            raise ValueError(f"column {one.name!r}: weights of a set must be finite and at least 0, got {cell}")
    elif isinstance(cell, str):
        pairs = [(member, 1.0) for member in cell.split(one.separator)]
    elif isinstance(cell, (list, tuple)):
        pairs = [(member, 1.0) for member in cell]
    elif isinstance(cell, (set, frozenset)):
        pairs = [(member, 1.0) for member in sorted(cell, key=str)]
    else:
        pairs = [(cell, 1.0)]
    return [(member, weight) for member, weight in pairs if category(member) is not None]


def _count(counts: Counter[str], column: list, one: Field) -> None:
    cells = column if one.kind == "categorical" else [member for cell in column for member, _ in _members(cell, one)]
    for cell, count in Counter(cells).items():
        key = category(cell)
        if key is not None:
            counts[key] += count


def _number(cell: Any) -> float | None:
    if isinstance(cell, str) and "_" in cell:  # Python's own 1_000 is not a number in a file
        return None
    try:
        value = float(cell)
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None


def _numbers(column: list, one: Field) -> np.ndarray:
    """The column as float64, NaN where it is missing."""
    if set(map(type, column)) <= {int, float, bool, type(None)}:
        values = np.array(column, np.float64)
        if not np.isinf(values).any():
            return values
    values = np.full(len(column), math.nan)
    for row, cell in enumerate(column):
        if category(cell) is not None:
            value = _number(cell)
            if value is None:
                raise ValueError(
                    f"column {one.name!r}, row {row}: expected a finite number, got {cell!r} (if the column holds "
                    "categories, make it a categorical field)"
                )
            values[row] = value
    return values


def _transformed(one: Field, values: np.ndarray) -> np.ndarray:
    if one.scale != "log2":
        return values
    return np.where(values > 2, np.floor(np.log(np.maximum(values, 2)) ** 2), values)


def _measure(totals: list[float], one: Field, values: np.ndarray) -> None:
    """Update count, mean, sum of squared deviations, minimum and maximum (Chan et al. 1979)."""
    values = values[~np.isnan(values)]
    if not len(values):
        return
    count, mean, squares, low, high = totals
    both, apart = count + len(values), values.mean() - mean
    squares += ((values - values.mean()) ** 2).sum() + apart**2 * count * len(values) / both
    totals[:] = [both, mean + apart * len(values) / both, squares, min(low, values.min()), max(high, values.max())]


def _scale(one: Field, count: float, mean: float, squares: float, low: float, high: float) -> tuple[float, float]:
    if one.scale in ("log2", "none") or not count or high == low:
        return (0.0, 1.0) if one.scale in ("log2", "none") or not count else (float(low), 1.0)
    if one.scale == "minmax":
        return float(low), float(1 / (high - low))
    return float(mean), float((count / squares) ** 0.5)
