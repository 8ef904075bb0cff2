"""Patching: changing a program from outside, by path, key, type, value or member, or by ``path=value`` texts."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from flambeau.symbolic.errors import SymbolicError
from flambeau.symbolic.fields import accepts
from flambeau.symbolic.node import Node
from flambeau.symbolic.parse import parse_value
from flambeau.symbolic.paths import parse_path
from flambeau.symbolic.symbol import Symbol
from flambeau.symbolic.tree import MISSING, Tree
from flambeau.symbolic.values import same


def patch(tree: Any, patches: Iterable[str] | Mapping[str, Any] | str) -> Any:
    """Rebind `tree` by texts such as ``"training.steps=300"`` or ``"layers[2]=Linear(3, 4)"``, or by {path: value}.

    A text is read by :func:`flambeau.symbolic.parse_value`; where the parameter takes only strings it is the string.
    Patches apply one after the other, all or none. Returns the tree.

    Raises:
        SymbolicError: not ``path=value``; unknown path, part or value, with the nearest names.
    """
    if isinstance(patches, str):
        patches = [patches]
    pairs = patches.items() if isinstance(patches, Mapping) else map(_split, patches)
    trial = tree.clone()
    updates: list[tuple[str, Any]] = []
    for path, value in pairs:
        keys = parse_path(path)
        if isinstance(value, _Text):
            holder = trial._walk(keys[:-1])
            hint = holder._hint(keys[-1]) if isinstance(holder, Tree) else Any
            try:
                parsed = parse_value(value)
            except SymbolicError as error:
                raise SymbolicError(f"{path}: {error}") from None
            value = str(value) if not accepts(hint, parsed) and accepts(hint, str(value)) else parsed
        trial.rebind({path: value})
        updates.append((path, value))
    for path, value in updates:
        tree.rebind({path: value.clone() if isinstance(value, Tree) else value})
    return tree


def patch_on_path(tree: Any, pattern: str, value: Any) -> Any:
    """Replace the parts whose path matches the regular expression from its start.

    `value` is the new value; if it is a function without being symbolic, it is called with the old value, as in all
    ``patch_on_`` functions. Parts inside a replaced part are not looked at. Returns the tree.
    """
    found = re.compile(pattern)
    return _patch(tree, lambda path, old, parent: found.match(path) is not None, value)


def patch_on_key(tree: Any, pattern: str, value: Any) -> Any:
    """Replace the parts whose last key (argument name or dict key) matches the whole regular expression."""
    found = re.compile(pattern)
    return _patch(tree, lambda path, old, parent: found.fullmatch(str(parse_path(path)[-1])) is not None, value)


def patch_on_type(tree: Any, kind: Any, value: Any) -> Any:
    """Replace the parts of a type: nodes of a class or function (or its subclasses), or plain values of that class."""
    return _patch(tree, lambda path, old, parent: _is_kind(old, kind), value)


def patch_on_value(tree: Any, old: Any, value: Any) -> Any:
    """Replace the parts that equal `old`, by type and value."""
    return _patch(tree, lambda path, found, parent: same(found, old), value)


def patch_on_member(tree: Any, owner: Any, name: str, value: Any) -> Any:
    """Replace the argument `name` of all nodes of the class or function `owner`, the tree itself included."""

    def is_member(path: str, old: Any, parent: Tree | None) -> bool:
        return parse_path(path)[-1] == name and isinstance(parent, Node) and _is_kind(parent, owner)

    return _patch(tree, is_member, value)


class _Text(str):
    """The right side of a ``path=value`` text, still to be read."""


def _split(text: str) -> tuple[str, Any]:
    path, equals, value = text.partition("=")
    if not equals or not path.strip():
        raise SymbolicError(f"expected path=value, such as training.steps=300, got {text!r}")
    return path.strip(), _Text(value)


def _is_kind(value: Any, kind: Any) -> bool:
    target = kind.target if isinstance(kind, Symbol) else kind
    if isinstance(value, Node):
        return value.target is target or (
            isinstance(target, type) and isinstance(value.target, type) and issubclass(value.target, target)
        )
    return isinstance(target, type) and isinstance(value, target) and value is not MISSING


def _patch(tree: Any, chosen: Callable[[str, Any, Tree | None], bool], value: Any) -> Any:
    compute = value if callable(value) and not isinstance(value, (Symbol, type)) else None

    def update(path: str, old: Any, parent: Tree | None) -> Any:
        if not chosen(path, old, parent):
            return old
        return compute(old) if compute else value

    return tree.rebind(update)
