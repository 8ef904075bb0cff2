"""The list, tuple and dict of a tree, and how ordinary values become parts of one."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from flambeau.symbolic.errors import SymbolicError, nearest
from flambeau.symbolic.fields import element
from flambeau.symbolic.paths import Key, join
from flambeau.symbolic.tree import MISSING, Tree, attach, copy_value


def adopt(value: Any, home: Tree | None = None, path: str = "", _outer: tuple[int, ...] = ()) -> Any:
    """`value` as it is kept in a tree: containers become symbolic, a part of another tree is copied.

    ``functools.partial`` of a class or function becomes a late-bound node, so that its arguments have paths.

    Raises:
        SymbolicError: the value contains itself or the tree `home` that it is to be put into.
    """
    if isinstance(value, Tree):
        if value is home:
            raise SymbolicError(f"{path}: a tree cannot contain itself")
        return value._copy({}) if value._parent is not None else value
    kind = type(value)
    if kind in (list, tuple, dict):
        if id(value) in _outer:
            raise SymbolicError(f"{path}: a {kind.__name__} that contains itself is not a tree")
        outer = (*_outer, id(value))
        if kind is dict:
            return Dict({key: adopt(item, home, join(path, key), outer) for key, item in value.items()})
        items = (adopt(item, home, join(path, i), outer) for i, item in enumerate(value))
        return List(items) if kind is list else Tuple(items)
    if kind is functools.partial:
        return _late_node(value)
    if hasattr(value, "_as_value"):
        return value._as_value()
    return value


def _late_node(value: functools.partial[Any]) -> Any:
    """A ``functools.partial`` as a late-bound node, or unchanged where its signature is unknown."""
    from flambeau.symbolic.symbol import symbolize

    target = value.func
    if not (inspect.isclass(target) or inspect.isroutine(target)):
        return value
    try:
        symbol = symbolize(target)
    except SymbolicError:
        return value
    return symbol.partial(*value.args, **value.keywords)


class Tuple(Tree, tuple):
    """A tuple in a tree. Rebinding one of its items puts a new tuple in its place."""

    def __new__(cls, items: Iterable[Any] = ()) -> Tuple:
        self = tuple.__new__(cls, _claimed(items))
        for item in self:
            attach(item, self)
        return self

    def _items(self) -> Iterable[tuple[Key, Any]]:
        return enumerate(self)

    def _hint(self, key: Key) -> Any:
        return element(self._own_hint(), key)

    def _copy(self, swap: dict[int, Any]) -> Tuple:
        return Tuple([copy_value(item, swap) for item in self])

    def _child(self, key: Key, path: str) -> Any:
        return self[_position(key, len(self), path)]

    def __deepcopy__(self, memo: dict[int, Any]) -> Tuple:
        return self._copy({})

    def __reduce__(self) -> Any:
        return Tuple, (tuple(self),)


def _claimed(items: Iterable[Any]) -> list[Any]:
    """The items, the second occurrence of one tree replaced by a copy: a tree has one parent."""
    seen: set[int] = set()
    result = []
    for item in items:
        if isinstance(item, Tree):
            if item._parent is not None or id(item) in seen:
                item = item._copy({})
            seen.add(id(item))
        result.append(item)
    return result


class List(Tree, list):
    """A list in a tree. Every change of it is a rebind: checked, and followed by change events."""

    def __init__(self, items: Iterable[Any] = ()):
        list.__init__(self, _claimed(items))
        for item in self:
            attach(item, self)

    def _items(self) -> Iterable[tuple[Key, Any]]:
        return enumerate(self)

    def _put(self, key: Key, value: Any) -> None:
        list.__setitem__(self, key, value)  # type: ignore[index, assignment]
        attach(value, self)

    def _hint(self, key: Key) -> Any:
        return element(self._own_hint(), key)

    def _copy(self, swap: dict[int, Any]) -> List:
        return List([copy_value(item, swap) for item in self])

    def _child(self, key: Key, path: str) -> Any:
        return self[_position(key, len(self), path)]

    def _edit(self, *changes: tuple[int, Any]) -> None:
        from flambeau.symbolic.rebind import apply

        apply(self, [((index,), value) for index, value in changes])

    def _rewrite(self, items: list[Any]) -> None:
        """Replace the whole content, keeping the items that stay."""
        from flambeau.symbolic.rebind import rewrite

        rewrite(self, items)

    def __setitem__(self, index: Any, value: Any) -> None:
        if isinstance(index, slice):
            items = list(self)
            items[index] = value
            self._rewrite(items)
        else:
            self._edit((range(len(self))[index], value))

    def __delitem__(self, index: Any) -> None:
        chosen = range(len(self))[index]
        self._edit(*[(i, MISSING) for i in (chosen if isinstance(index, slice) else [chosen])])

    def insert(self, index: Any, value: Any) -> None:
        from flambeau.symbolic.rebind import Insert

        self._edit((range(len(self) + 1)[slice(index, None)].start, Insert(value)))

    def append(self, value: Any) -> None:
        self._edit((len(self), value))

    def extend(self, values: Iterable[Any]) -> None:
        self._edit(*[(len(self) + i, value) for i, value in enumerate(list(values))])

    def __iadd__(self, values: Iterable[Any]) -> List:  # type: ignore[misc]
        self.extend(values)
        return self

    def __imul__(self, times: Any) -> List:  # type: ignore[misc]
        self._rewrite(list(self) * times)
        return self

    def pop(self, index: Any = -1) -> Any:
        value = self[index]
        del self[index]
        return value

    def remove(self, value: Any) -> None:
        del self[self.index(value)]

    def clear(self) -> None:
        del self[:]

    def reverse(self) -> None:
        self._rewrite(list(self)[::-1])

    def sort(self, *, key: Any = None, reverse: bool = False) -> None:
        self._rewrite(sorted(self, key=key, reverse=reverse))

    def __deepcopy__(self, memo: dict[int, Any]) -> List:
        return self._copy({})

    def __reduce__(self) -> Any:
        return List, (list(self),)


class Dict(Tree, dict):
    """A dict in a tree. Every change of it is a rebind: checked, and followed by change events."""

    def __init__(self, items: Mapping[Any, Any] | Iterable[tuple[Any, Any]] = ()):
        items = dict(items)
        dict.__init__(self, zip(items, _claimed(items.values())))
        for item in self.values():
            attach(item, self)

    def _items(self) -> Iterable[tuple[Key, Any]]:
        return self.items()

    def _put(self, key: Key, value: Any) -> None:
        dict.__setitem__(self, key, value)
        attach(value, self)

    def _hint(self, key: Key) -> Any:
        return element(self._own_hint(), key)

    def _copy(self, swap: dict[int, Any]) -> Dict:
        return Dict({key: copy_value(item, swap) for key, item in self.items()})

    def _child(self, key: Key, path: str) -> Any:
        if key not in self:
            raise SymbolicError(f"{path}: no key {key!r}{nearest(str(key), map(str, self))}")
        return self[key]

    def __setitem__(self, key: Any, value: Any) -> None:
        from flambeau.symbolic.rebind import apply

        apply(self, [((key,), value)])

    def __delitem__(self, key: Any) -> None:
        if key not in self:
            raise KeyError(key)
        self[key] = MISSING

    def update(self, *items: Any, **named: Any) -> None:
        from flambeau.symbolic.rebind import apply

        apply(self, [((key,), value) for key, value in dict(*items, **named).items()])

    def __ior__(self, items: Any) -> Dict:  # type: ignore[override, misc]
        self.update(items)
        return self

    def setdefault(self, key: Any, default: Any = None) -> Any:
        if key not in self:
            self[key] = default
        return self[key]

    def pop(self, key: Any, *default: Any) -> Any:
        if key not in self and default:
            return default[0]
        value = self[key]
        del self[key]
        return value

    def popitem(self) -> tuple[Any, Any]:
        key = next(reversed(self))
        return key, self.pop(key)

    def clear(self) -> None:
        self.update(dict.fromkeys(self, MISSING))

    def __deepcopy__(self, memo: dict[int, Any]) -> Dict:
        return self._copy({})

    def __reduce__(self) -> Any:
        return Dict, (dict(self),)


def _position(key: Key, length: int, path: str) -> int:
    if not isinstance(key, int) or not 0 <= key < length:
        raise SymbolicError(f"{path}: no item {key!r} in a list of {length}")
    return key
