"""DNA: the decisions that make one program of a search space, as a tree of plain numbers and strings."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from typing import Any

from flambeau.symbolic.errors import SymbolicError

FORMAT = 1
DEEPEST = 400
LARGEST = 1 << 20


class DNA:
    """An immutable tree of decisions, equal and hashed by value.

    A space is a DNA without value, with one child per decision point. A choice of one candidate is its index, with the
    decisions inside that candidate as children; a choice of several is a DNA without value, with one such child each. A
    float is its value, a custom decision a string.

    Args:
        value: None, an index, a float or a string.
        children: the DNA below.
    """

    __slots__ = ("value", "children", "_hash")

    value: int | float | str | None
    children: tuple[DNA, ...]
    _hash: int | None

    def __init__(self, value: int | float | str | None = None, children: Iterable[DNA] = ()):
        if isinstance(value, bool) or not (value is None or isinstance(value, (int, float, str))):
            raise SymbolicError(f"the value of a DNA is None, an int, a float or a str, got {value!r}")
        object.__setattr__(self, "value", value)
        object.__setattr__(self, "children", tuple(children))
        object.__setattr__(self, "_hash", None)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError("a DNA cannot be changed; make a new one")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, DNA):
            return NotImplemented
        return type(self.value) is type(other.value) and self.value == other.value and self.children == other.children

    def __hash__(self) -> int:
        if self._hash is None:
            object.__setattr__(self, "_hash", hash((type(self.value), self.value, self.children)))
        return self._hash  # type: ignore[return-value]

    def __repr__(self) -> str:
        return f"DNA({_compact(self)})"

    def __reduce__(self) -> Any:
        return DNA, (self.value, self.children)

    def replace(self, position: int, child: DNA) -> DNA:
        """This DNA with another child at `position`."""
        return DNA(self.value, (*self.children[:position], child, *self.children[position + 1 :]))

    def nodes(self) -> Iterator[DNA]:
        """All nodes of the tree, parents first."""
        yield self
        for child in self.children:
            yield from child.nodes()

    def to_numbers(self) -> list[int | float | str]:
        """The decisions as a flat list in tree order; the inverse is ``spec.from_numbers``."""
        return [node.value for node in self.nodes() if node.value is not None]

    def features(self, n: int | None = None) -> dict[str, float]:
        """What a surrogate model sees: one feature for each decision that was made, none for those that were not.

        A decision is named by the chain of decisions that leads to it, as ``position=choice/position``; a choice counts
        1 under ``chain=index``, a float has its value under ``chain``.

        Args:
            n: chains are cut to their last 1, 2, ... `n` decisions and counted (decision n-grams), so that equal
                sub-structures at different depths share features. None: the whole chain, one feature a decision.
        """
        found: dict[str, float] = {}
        _features(self, (), n, found)
        return found

    def to_json(self) -> dict[str, Any]:
        """A JSON value: a list for a node without value, ``{"index": [...]}`` for a choice with decisions inside it."""
        return {"dna": FORMAT, "value": _to_json(self)}

    @classmethod
    def from_json(cls, data: Any) -> DNA:
        """The inverse of :meth:`to_json`; also takes its text.

        Raises:
            SymbolicError: another format version, or not a DNA.
        """
        if isinstance(data, str):
            if len(data) > LARGEST:
                raise SymbolicError(f"a DNA has at most {LARGEST} characters, got {len(data)}")
            try:
                data = json.loads(data)
            except (ValueError, RecursionError) as error:
                raise SymbolicError(f"not the JSON of a DNA: {error}") from None
        if not isinstance(data, dict) or set(data) != {"dna", "value"}:
            raise SymbolicError(f'the JSON of a DNA is {{"dna": {FORMAT}, "value": ...}}, got {str(data)[:80]!r}')
        if data["dna"] != FORMAT:
            raise SymbolicError(f"DNA format {data['dna']!r} is not known; this version reads {FORMAT}")
        return _from_json(data["value"], 0)


def _compact(dna: DNA) -> str:
    if dna.value is None:
        return f"[{', '.join(map(_compact, dna.children))}]"
    if not dna.children:
        return repr(dna.value)
    return f"({dna.value!r}, {', '.join(map(_compact, dna.children))})"


def _to_json(dna: DNA) -> Any:
    if dna.value is None:
        return [_to_json(child) for child in dna.children]
    return {str(dna.value): [_to_json(child) for child in dna.children]} if dna.children else dna.value


def _from_json(data: Any, depth: int) -> DNA:
    if depth > DEEPEST:
        raise SymbolicError(f"a DNA is at most {DEEPEST} levels deep")
    if isinstance(data, list):
        return DNA(None, [_from_json(item, depth + 1) for item in data])
    if isinstance(data, dict):
        if len(data) == 1 and isinstance(items := next(iter(data.values())), list) and next(iter(data)).isdecimal():
            return DNA(int(next(iter(data))), [_from_json(item, depth + 1) for item in items])
        raise SymbolicError(f"a choice in the JSON of a DNA is {{index: [decisions]}}, got {str(data)[:80]!r}")
    if isinstance(data, float) and not math.isfinite(data):
        raise SymbolicError(f"a decision is a finite number, got {data!r}")
    if data is None:
        raise SymbolicError("a decision in the JSON of a DNA is a number, a string, a list or an object, got null")
    return DNA(data)


def _features(dna: DNA, chain: tuple[str, ...], n: int | None, found: dict[str, float]) -> None:
    for position, child in enumerate(dna.children):
        if child.value is None:  # several choices at one point, in order
            for rank, choice in enumerate(child.children):
                _feature(f"{position}.{rank}", choice, chain, n, found)
        else:
            _feature(str(position), child, chain, n, found)


def _feature(name: str, dna: DNA, chain: tuple[str, ...], n: int | None, found: dict[str, float]) -> None:
    number = isinstance(dna.value, float)
    longer = (*chain, name if number else f"{name}={dna.value}")
    for length in range(1, n + 1) if n else [len(longer)]:
        if length <= len(longer):
            key = "/".join(longer[-length:])
            found[key] = found.get(key, 0.0) + (float(dna.value) if number else 1.0)  # type: ignore[arg-type]
    _features(dna, longer, n, found)
