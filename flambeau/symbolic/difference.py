"""What differs between two programs, as text and HTML."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher, ndiff
from typing import Any

from flambeau.symbolic.containers import adopt
from flambeau.symbolic.fields import shorten
from flambeau.symbolic.node import Node
from flambeau.symbolic.paths import join
from flambeau.symbolic.tree import MISSING, Tree
from flambeau.symbolic.values import same, value_hash


@dataclass(frozen=True)
class Difference:
    """One place where two programs differ; MISSING stands for a part that only the other one has.

    Attributes:
        path: the place in the right program, or in the left one for a part that was removed.
    """

    path: str
    left: Any
    right: Any

    @property
    def kind(self) -> str:
        """``"added"``, ``"removed"`` or ``"changed"``."""
        return "added" if self.left is MISSING else "removed" if self.right is MISSING else "changed"


@dataclass(frozen=True)
class Diff:
    """All differences between two programs; false if there are none. ``str`` gives text, notebooks show a table."""

    differences: tuple[Difference, ...]

    def __bool__(self) -> bool:
        return bool(self.differences)

    def __len__(self) -> int:
        return len(self.differences)

    def __iter__(self) -> Iterator[Difference]:
        return iter(self.differences)

    def __str__(self) -> str:
        lines = []
        for d in self.differences:
            place = d.path or "the root"
            if d.kind == "changed":
                lines.append(f"~ {place}: {_show(d.left)} -> {_show(d.right)}")
            elif d.kind == "added":
                lines.append(f"+ {place}: {_show(d.right)}")
            else:
                lines.append(f"- {place}: {_show(d.left)}")
        return "\n".join(lines) or "no difference"

    def to_html(self) -> str:
        """A self-contained HTML table, one row per difference; all values are escaped."""
        from html import escape

        colours = {"added": "#e6ffec", "removed": "#ffebe9", "changed": "#fff8c5"}
        rows = "".join(
            f'<tr style="background:{colours[d.kind]}"><td>{escape(d.path or "the root")}</td><td>{d.kind}</td>'
            f"<td><code>{escape(_show(d.left))}</code></td><td><code>{escape(_show(d.right))}</code></td></tr>"
            for d in self.differences
        )
        head = "<tr><th>path</th><th></th><th>left</th><th>right</th></tr>"
        return f'<table class="symbolic-diff">{head}{rows}</table>' if rows else "<p>no difference</p>"

    def _repr_html_(self) -> str:
        return self.to_html()


def diff(left: Any, right: Any) -> Diff:
    """The differences between two values. Nodes of one target are compared argument by argument; items inserted into or
    removed from a list are found as such."""
    return Diff(tuple(_differences(adopt_copy(left), adopt_copy(right), "", "")))


def changed_lines(static: str, space: str) -> int:
    """How many lines of the program text `static` were changed, added or removed to get `space`; blank lines and
    indentation do not count. The measure of how much work a search space was."""
    before, after = ([line.strip() for line in text.splitlines() if line.strip()] for text in (static, space))
    marks = [line[0] for line in ndiff(before, after)]
    removed, added, total = 0, 0, 0
    for mark in [*marks, " "]:
        if mark == " ":
            total += max(removed, added)
            removed = added = 0
        removed += mark == "-"
        added += mark == "+"
    return total


def adopt_copy(value: Any) -> Any:
    """A value as a tree, without touching a tree that it belongs to."""
    return value if isinstance(value, Tree) else adopt(value)


def _differences(left: Any, right: Any, left_path: str, right_path: str) -> Iterator[Difference]:
    if same(left, right):
        return
    if isinstance(left, Node) and isinstance(right, Node) and left.target == right.target and left.late == right.late:
        yield from _by_key(left._args, right._args, left_path, right_path)
    elif isinstance(left, Tree) and isinstance(right, Tree) and isinstance(left, dict) and isinstance(right, dict):
        yield from _by_key(left, right, left_path, right_path)
    elif isinstance(left, Tree) and type(left) is type(right) and isinstance(left, (list, tuple)):
        yield from _by_position(left, right, left_path, right_path)
    else:
        yield Difference(right_path if right is not MISSING else left_path, left, right)


def _by_key(left: Any, right: Any, left_path: str, right_path: str) -> Iterator[Difference]:
    for key in dict.fromkeys([*left, *right]):
        a, b = left.get(key, MISSING), right.get(key, MISSING)
        yield from _differences(a, b, join(left_path, key), join(right_path, key))


def _by_position(left: Any, right: Any, left_path: str, right_path: str) -> Iterator[Difference]:
    matcher = SequenceMatcher(None, [value_hash(item) for item in left], [value_hash(item) for item in right], False)
    for _, i0, i1, j0, j1 in matcher.get_opcodes():
        for offset in range(max(i1 - i0, j1 - j0)):
            i, j = i0 + offset, j0 + offset
            a = left[i] if i < i1 else MISSING
            b = right[j] if j < j1 else MISSING
            yield from _differences(a, b, join(left_path, i), join(right_path, j))


def _show(value: Any) -> str:
    return "" if value is MISSING else shorten(value, 200)
