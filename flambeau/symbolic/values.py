"""Comparing parts of trees by value: equality, hash and order."""

from __future__ import annotations

import inspect
from typing import Any

from flambeau.symbolic.containers import Dict
from flambeau.symbolic.tree import Tree


def same(a: Any, b: Any) -> bool:
    """Equality by type and value: 1, 1.0 and True differ, NaN equals itself, arrays are equal only to themselves."""
    if a is b:
        return True
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        kinds = isinstance(a, list) == isinstance(b, list)
        return kinds and len(a) == len(b) and all(same(x, y) for x, y in zip(a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(value, b[key]) for key, value in a.items())
    if type(a) is not type(b):
        return False
    if isinstance(a, Tree):
        return a._same(b)  # type: ignore[attr-defined]
    if isinstance(a, float):
        return a == b or (a != a and b != b)
    try:
        return bool(a == b)
    except Exception:  # arrays compare by element
        return False


def value_hash(value: Any) -> int:
    """A hash that agrees with :func:`same`; what cannot be hashed by value counts as its type."""
    if isinstance(value, (list, tuple)):
        return hash((isinstance(value, list), *map(value_hash, value)))
    if isinstance(value, dict):
        return hash(frozenset((key, value_hash(item)) for key, item in value.items()))
    if value != value if isinstance(value, float) else False:
        return hash("nan")
    try:
        return hash((type(value), value)) if not isinstance(value, Tree) else hash(value)
    except TypeError:
        return hash(type(value))


def order_key(value: Any) -> tuple[Any, ...]:
    """A sort key over all parts: None, numbers by value, text, containers, others, nodes by name and arguments."""
    if value is None:
        return (0,)
    if isinstance(value, (bool, int, float)):
        return (1, value, type(value).__name__)
    if isinstance(value, str):
        return (2, value)
    if isinstance(value, (list, tuple)):
        return (3, [order_key(item) for item in value])
    if isinstance(value, (dict, Dict)):
        return (4, [(str(key), order_key(item)) for key, item in value.items()])
    if isinstance(value, Tree):
        return (6, value.symbol.name, [(key, order_key(item)) for key, item in value._items()])  # type: ignore[attr-defined]
    name = getattr(value, "__qualname__", "") if inspect.isroutine(value) or inspect.isclass(value) else repr(value)
    return (5, type(value).__name__, name)


def lt(a: Any, b: Any) -> bool:
    """Whether `a` comes before `b` in the order over all symbolic values."""
    return order_key(a) < order_key(b)


def gt(a: Any, b: Any) -> bool:
    """Whether `a` comes after `b` in the order over all symbolic values."""
    return order_key(b) < order_key(a)
