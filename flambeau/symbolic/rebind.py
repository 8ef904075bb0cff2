"""Rebinding: several changes of a tree at once, undone if one of them fails, then one event per affected ancestor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from flambeau.symbolic.containers import Dict, List, Tuple, adopt
from flambeau.symbolic.errors import SymbolicError
from flambeau.symbolic.fields import check
from flambeau.symbolic.paths import Key, format_path
from flambeau.symbolic.tree import MISSING, Tree, attach
from flambeau.symbolic.values import same


@dataclass(frozen=True)
class Change:
    """A value that was replaced; MISSING stands for absent, before an insertion or after a deletion."""

    old: Any
    new: Any


@dataclass(frozen=True)
class Insert:
    """As the value of a rebind: insert before that list position instead of replacing what is there."""

    value: Any


Changes = list[tuple[Tree, Key, Change]]


def updates_of(tree: Tree, function: Callable[[str, Any, Tree | None], Any]) -> list[tuple[tuple[Key, ...], Any]]:
    """What ``function(path, value, parent)`` changes, asked about every part below `tree`, parents first."""
    updates: list[tuple[tuple[Key, ...], Any]] = []

    def visit(value: Any, keys: tuple[Key, ...], parent: Tree | None) -> None:
        new = function(format_path(keys), value, parent) if keys else value
        if new is not value:
            updates.append((keys, new))
        elif isinstance(value, Tree):
            for key, item in list(value._items()):
                visit(item, (*keys, key), value)

    visit(tree, (), None)
    return updates


def apply(tree: Tree, updates: list[tuple[tuple[Key, ...], Any]]) -> None:
    """Apply the updates to `tree`, or none of them, then send the events."""
    undo: list[Callable[[], None]] = []
    changes: Changes = []
    try:
        plain: list[tuple[tuple[Key, ...], Any]] = []
        structural: list[tuple[tuple[Key, ...], Any]] = []
        for keys, value in updates:
            if not keys:
                raise SymbolicError("the empty path is the tree itself, which has no place to be replaced in")
            keys, holder = _spelled_out(tree, keys)
            moves = isinstance(value, Insert) or (value is MISSING and isinstance(holder, (List, Tuple)))
            (structural if moves else plain).append((keys, value))
        for keys, value in plain:
            _set(tree, keys, value, undo, changes)
        # From the last position to the first (and the later given first), so that positions mean the original list.
        for _, (keys, value) in sorted(enumerate(structural), key=lambda e: (_order(e[1][0]), e[0]), reverse=True):
            _restructure(tree, keys, value, undo, changes)
        affected = _affected(changes)
        for ancestor, _ in affected:
            ancestor._validate(ancestor.path)
    except BaseException:
        for action in reversed(undo):
            action()
        raise
    for ancestor, relative in affected:
        for callback in ancestor._callbacks:
            callback(relative)


def rewrite(target: List, items: list[Any]) -> None:
    """Replace the content of a list as a whole; ancestors see one change, of the list."""
    _refuse_sealed(target)
    old = list(target)
    kept = {id(item) for item in old}
    new: list[Any] = []
    for i, item in enumerate(items):
        path = f"{target.path}[{i}]"
        if isinstance(item, Tree) and id(item) in kept:
            kept.discard(id(item))
            new.append(item)
        else:
            new.append(adopt(check(target._hint(i), item, path), target.root, path))
    for item in old:
        if isinstance(item, Tree):
            item._parent = None
    list.__init__(target, new)
    for item in new:
        attach(item, target)
    change = Change(old, target)
    for callback in target._callbacks:
        callback({"": change})
    if target._parent is not None:
        for ancestor, relative in _affected([(target._parent, target._parent._key_of(target), change)]):
            ancestor._validate(ancestor.path)
            for callback in ancestor._callbacks:
                callback(relative)


def _order(keys: tuple[Key, ...]) -> tuple[tuple[int, Any], ...]:
    return tuple((isinstance(key, int), key) if isinstance(key, int) else (0, str(key)) for key in keys)


def _spelled_out(tree: Tree, keys: tuple[Key, ...]) -> tuple[tuple[Key, ...], Any]:
    """The keys with ``[0]`` of a node written as ``args[0]``, and what holds the last of them, or None."""
    holder: Any = tree
    spelled: tuple[Key, ...] = ()
    for i, key in enumerate(keys):
        if isinstance(key, int) and (variable := getattr(holder, "_variable", None)) is not None:
            spelled, holder = (*spelled, variable), holder._args[variable]
        spelled = (*spelled, key)
        if i < len(keys) - 1:
            try:
                holder = holder._child(key, "") if isinstance(holder, Tree) else None
            except SymbolicError:
                holder = None
    return spelled, holder


def _refuse_sealed(tree: Tree) -> None:
    if tree.sealed:
        raise SymbolicError(f"{tree.path or 'the tree'} is sealed: rebind a clone, or seal(False) first")


def _holder(tree: Tree, keys: tuple[Key, ...]) -> tuple[Tree, str]:
    """The tree that holds the last key, and the full path from the root for messages."""
    full = format_path((*tree.keys_from_root, *keys))
    holder = tree._walk(keys[:-1])
    if not isinstance(holder, Tree):
        raise SymbolicError(f"{full}: {holder!r} has no parts")
    _refuse_sealed(holder)
    return holder, full


def _set(tree: Tree, keys: tuple[Key, ...], value: Any, undo: list[Callable[[], None]], changes: Changes) -> None:
    holder, full = _holder(tree, keys)
    key = keys[-1]
    if isinstance(holder, Tuple):
        items = list(holder)
        holder._child(key, full)
        items[key] = holder._accept(key, value, full)  # type: ignore[index, call-overload]
        if holder is tree:
            raise SymbolicError(f"{full}: a tuple that is the root cannot be changed")
        _set(tree, keys[:-1], tuple(items), undo, changes)
        return
    if isinstance(holder, List) and key == len(holder):
        _insert(holder, len(holder), value, full, undo, changes)
        return
    if isinstance(holder, Dict):
        old = holder.get(key, MISSING)
    else:
        old = holder._child(key, full)
    if value is MISSING and isinstance(holder, Dict):
        if old is MISSING:
            raise SymbolicError(f"{full}: there is nothing to delete")
        order = list(holder)
        dict.__delitem__(holder, key)
        undo.append(lambda: _restore_key(holder, key, old, order))
        new = MISSING
    else:
        new = holder._accept(key, value, full)
        if new is old or (not isinstance(new, Tree) and same(new, old)):
            return
        holder._put(key, new)
        undo.append(lambda: _undo_put(holder, key, old, new))
    if isinstance(old, Tree):
        old._parent = None
    changes.append((holder, key, Change(old, new)))


def _restructure(
    tree: Tree, keys: tuple[Key, ...], value: Any, undo: list[Callable[[], None]], changes: Changes
) -> None:
    holder, full = _holder(tree, keys)
    key = keys[-1]
    if isinstance(holder, Tuple) or not isinstance(holder, List):
        raise SymbolicError(f"{full}: only a list can be inserted into or shortened, this is a {type(holder).__name__}")
    if isinstance(value, Insert):
        _insert(holder, key, value.value, full, undo, changes)
        return
    old = holder._child(key, full)
    list.pop(holder, key)  # type: ignore[arg-type]

    def put_back() -> None:
        list.insert(holder, key, old)  # type: ignore[arg-type]
        attach(old, holder)

    undo.append(put_back)
    if isinstance(old, Tree):
        old._parent = None
    changes.append((holder, key, Change(old, MISSING)))


def _insert(holder: List, key: Key, value: Any, full: str, undo: list[Callable[[], None]], changes: Changes) -> None:
    if not isinstance(key, int) or not 0 <= key <= len(holder):
        raise SymbolicError(f"{full}: no place to insert in a list of {len(holder)}")
    new = holder._accept(key, value, full)
    list.insert(holder, key, new)
    attach(new, holder)

    def take_back() -> None:
        list.pop(holder, key)
        if isinstance(new, Tree):
            new._parent = None

    undo.append(take_back)
    changes.append((holder, key, Change(MISSING, new)))


def _undo_put(holder: Tree, key: Key, old: Any, new: Any) -> None:
    if isinstance(new, Tree):
        new._parent = None
    if old is MISSING and isinstance(holder, Dict):
        dict.__delitem__(holder, key)
    else:
        holder._put(key, old)


def _restore_key(holder: Dict, key: Key, old: Any, order: list[Any]) -> None:
    items = dict(holder) | {key: old}
    dict.clear(holder)
    for name in order:
        holder._put(name, items[name])


def _affected(changes: Changes) -> list[tuple[Tree, dict[str, Change]]]:
    """Every tree above a change with its changes by relative path, deepest first."""
    found: dict[int, tuple[Tree, int, dict[str, Change]]] = {}
    for holder, key, change in changes:
        keys: tuple[Key, ...] = (key,)
        tree: Tree | None = holder
        depth = len(holder.keys_from_root)
        while tree is not None:
            found.setdefault(id(tree), (tree, depth, {}))[2][format_path(keys)] = change
            if tree._parent is not None:
                keys = (tree._parent._key_of(tree), *keys)
            tree, depth = tree._parent, depth - 1
    return [(tree, relative) for tree, _, relative in sorted(found.values(), key=lambda entry: -entry[1])]
