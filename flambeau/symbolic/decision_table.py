"""A search space as a table of its decisions."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from flambeau.symbolic.space import Budget, Point, Space, Unbounded
from flambeau.symbolic.spec import Choices, Custom, Float


@dataclass(frozen=True)
class Row:
    """One decision point.

    Attributes:
        decision: its name, or the path of the hyper value.
        depth: how many choices it depends on.
        condition: the choice that makes it due, or an empty text.
        kind: for example ``choose 2 of 5, distinct`` or ``float, log``.
        values: the candidates or the range.
        size: number of ways to decide it, with what it opens.
    """

    decision: str
    depth: int
    condition: str
    kind: str
    values: str
    size: int | float


@dataclass(frozen=True)
class Summary:
    """The decision table of a space, and its size. ``str`` gives text, notebooks show an HTML table."""

    rows: tuple[Row, ...]
    size: int | float
    cut: bool

    def __str__(self) -> str:
        table = [("decision", "kind", "values", "ways")]
        for row in self.rows:
            when = f" (if {row.condition})" if row.condition else ""
            table.append(("  " * row.depth + row.decision + when, row.kind, row.values, _size(row.size)))
        widths = [max(len(line[column]) for line in table) for column in range(4)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in table]
        return "\n".join([*lines, *(["..."] if self.cut else []), f"size of the space: {_size(self.size)}"])

    def to_html(self) -> str:
        """A self-contained HTML table; all texts are escaped."""
        from html import escape

        rows = "".join(
            f'<tr><td style="padding-left:{row.depth + 0.5}em">{escape(row.decision)}</td>'
            f"<td>{escape(row.condition)}</td><td>{escape(row.kind)}</td><td>{escape(row.values)}</td><td>{_size(row.size)}</td></tr>"
            for row in self.rows
        )
        head = "<tr><th>decision</th><th>if</th><th>kind</th><th>values</th><th>ways</th></tr>"
        more = "<p>...</p>" if self.cut else ""
        return f'<table class="symbolic-space">{head}{rows}</table>{more}<p>size of the space: {_size(self.size)}</p>'

    def _repr_html_(self) -> str:
        return self.to_html()


def summary(space: Any, limit: int = 200) -> Summary:
    """The decision table of a template, trace or spec, at most `limit` rows (a lazy space may have no end)."""
    spec: Space = space if isinstance(space, Space) else space.spec
    rows: list[Row] = []
    for row in _rows(spec, 0, ""):
        if len(rows) == limit:
            return Summary(tuple(rows), spec.size, True)
        rows.append(row)
    return Summary(tuple(rows), spec.size, False)


def _rows(space: Space, depth: int, condition: str) -> Iterator[Row]:
    for point in space.points:
        name = point.name or point.id
        kind, values = _describe(point)
        yield Row(name, depth, condition, kind, values, _ways(point))
        if isinstance(point, Choices) and not point.constant:
            for index in range(point.n):
                yield from _rows(point.branch(index), depth + 1, f"{name}={index}")


def _describe(point: Point) -> tuple[str, str]:
    if isinstance(point, Choices):
        if point.k == 1:
            kind = f"one of {point.n}"
        else:
            order = ", ".join(word for word, on in (("distinct", point.distinct), ("sorted", point.sorted)) if on)
            kind = f"{point.k} of {point.n}{', ' if order else ''}{order}"
        labels = point.labels or [str(i) for i in ([0, 1, "...", point.n - 1] if point.n > 4 else range(point.n))]
        text = ", ".join(labels)
        return kind, text if len(text) <= 80 else text[:77] + "..."
    if isinstance(point, Float):
        return f"float, {point.scale}", f"{point.lo:g} .. {point.hi:g}"
    assert isinstance(point, Custom)
    return "program", "evolved"


def _ways(point: Point) -> int | float:
    try:
        return point.count(Budget())
    except Unbounded:
        return math.inf


def _size(size: int | float) -> str:
    return "infinite" if size == math.inf else f"{size:,}"
