"""Trees of values that know their parent: the operations that nodes and containers share."""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from flambeau.symbolic.errors import SymbolicError
from flambeau.symbolic.fields import check, shorten
from flambeau.symbolic.paths import Key, format_path, join, parse_path


class _Missing:
    """No value: a required argument that was not given; rebinding to it deletes, or restores the default."""

    def __repr__(self) -> str:
        return "MISSING"

    def __reduce__(self) -> str:
        return "MISSING"


MISSING: Any = _Missing()


class Action(enum.Enum):
    """What a visitor tells :meth:`Tree.traverse`: go into the value, go on beside it, or stop everything."""

    ENTER = "enter"
    CONTINUE = "continue"
    STOP = "stop"


class Tree:
    """Something with parts, at a path of a parent: a node, or a list, tuple or dict in one."""

    _parent: Tree | None = None
    _sealed: bool = False
    _callbacks: tuple[Callable[[dict[str, Any]], None], ...] = ()

    @property
    def parent(self) -> Tree | None:
        """The tree that this one is a part of, or None at the root."""
        return self._parent

    @property
    def root(self) -> Tree:
        """The topmost ancestor."""
        tree = self
        while tree._parent is not None:
            tree = tree._parent
        return tree

    @property
    def keys_from_root(self) -> tuple[Key, ...]:
        """The path from the root as keys."""
        keys: list[Key] = []
        tree = self
        while tree._parent is not None:
            keys.append(tree._parent._key_of(tree))
            tree = tree._parent
        return tuple(reversed(keys))

    @property
    def path(self) -> str:
        """Where in the tree this is, for example ``layers[2].channels``; empty at the root."""
        return format_path(self.keys_from_root)

    def rebind(
        self, updates: Mapping[str, Any] | Callable[[str, Any, Tree | None], Any] | None = None, /, **named: Any
    ) -> Any:
        """Replace values by path, all or none; each affected ancestor then gets one change event, child to root.

        Args:
            updates: ``{path: value}``, or a function ``(path, value, parent) -> value`` asked about every part (what it
                replaces is not entered). The value ``MISSING`` deletes (an argument goes back to its default),
                ``Insert(value)`` inserts before a list position, and the position after the last appends.
            named: the same for parts of the tree itself.

        Paths mean the tree as it was before the call. Returns the tree.

        Raises:
            SymbolicError: unknown path, a value that does not fit, a sealed tree, a tree put into itself.
        """
        from flambeau.symbolic.rebind import apply, updates_of

        changes: list[tuple[tuple[Key, ...], Any]] = []
        if isinstance(updates, Mapping):
            changes += [(parse_path(path), value) for path, value in updates.items()]
        elif callable(updates):
            changes += updates_of(self, updates)
        elif updates is not None:
            raise SymbolicError(f"rebind takes {{path: value}} or a function of (path, value, parent), got {updates!r}")
        apply(self, changes + [((name,), value) for name, value in named.items()])
        return self

    def clone(self) -> Any:
        """An independent copy: no parent, not sealed, no callbacks. Values that are not symbolic are shared."""
        return self._copy({})

    def seal(self, sealed: bool = True) -> Any:
        """Refuse (or allow again) rebinding anywhere in this tree. Returns the tree."""
        self._sealed = sealed
        return self

    @property
    def sealed(self) -> bool:
        """Whether this tree or an ancestor is sealed."""
        return self._sealed or (self._parent is not None and self._parent.sealed)

    def on_change(self, callback: Callable[[dict[str, Any]], None]) -> Any:
        """Call ``callback(updates)`` once per rebind that changed this tree; `updates` maps relative path to Change."""
        self._callbacks = (*self._callbacks, callback)
        return self

    def traverse(
        self,
        pre: Callable[[str, Any, Tree | None], Action | None] | None = None,
        post: Callable[[str, Any, Tree | None], Action | None] | None = None,
    ) -> bool:
        """Visit every part, depth first; visitors get (path, value, parent), paths relative to this tree.

        `pre` may answer ``Action.CONTINUE`` (not into this value) or ``Action.STOP``; nothing means go on.
        Returns False if a visitor stopped it.
        """
        return _traverse(self, "", None, pre, post)

    def query(self, path: str | None = None, *, where: Callable[[Any], bool] | None = None) -> dict[str, Any]:
        """The parts whose path matches the regular expression from its start, and whose ``where(value)`` is true."""
        pattern = re.compile(path) if path is not None else None
        found: dict[str, Any] = {}

        def visit(at: str, value: Any, parent: Tree | None) -> None:
            if (pattern is None or pattern.match(at)) and (where is None or where(value)):
                found[at] = value

        self.traverse(visit)
        return found

    def build(self) -> Any:
        """The ordinary object that this tree describes; see :func:`flambeau.symbolic.build`."""
        from flambeau.symbolic.building import build

        return build(self)

    # What each kind of tree provides.

    def _items(self) -> Iterable[tuple[Key, Any]]:
        raise NotImplementedError

    def _put(self, key: Key, value: Any) -> None:
        raise NotImplementedError

    def _hint(self, key: Key) -> Any:
        raise NotImplementedError

    def _copy(self, swap: dict[int, Any]) -> Any:
        raise NotImplementedError

    def _child(self, key: Key, path: str) -> Any:
        raise NotImplementedError

    def _accept(self, key: Key, value: Any, path: str) -> Any:
        """`value` checked and made part of a tree, but not yet attached."""
        from flambeau.symbolic.containers import adopt

        return adopt(check(self._hint(key), value, path), home=self.root, path=path)

    def _validate(self, path: str) -> None:
        """Raise if the parts contradict each other."""

    def _key_of(self, child: Any) -> Key:
        return next(key for key, value in self._items() if value is child)

    def _own_hint(self) -> Any:
        return Any if self._parent is None else self._parent._hint(self._parent._key_of(self))

    def _walk(self, keys: tuple[Key, ...]) -> Any:
        """The raw value at `keys`."""
        value: Any = self
        for i, key in enumerate(keys):
            at = format_path(keys[: i + 1])
            if not isinstance(value, Tree):
                raise SymbolicError(f"{at}: {format_path(keys[:i])} is {shorten(value)}, which has no parts")
            value = value._child(key, at)
        return value


def attach(value: Any, parent: Tree) -> None:
    """Make `parent` the parent of `value`, if that is a tree."""
    if isinstance(value, Tree):
        value._parent = parent


def copy_value(value: Any, swap: dict[int, Any]) -> Any:
    """A copy of a part; parts whose id is in `swap` are replaced by what it says."""
    if isinstance(value, Tree):
        return swap[id(value)] if id(value) in swap else value._copy(swap)
    return value


def _traverse(value: Any, path: str, parent: Tree | None, pre: Any, post: Any) -> bool:
    action = pre(path, value, parent) if pre else None
    if action is Action.STOP:
        return False
    if isinstance(value, Tree) and action is not Action.CONTINUE:
        for key, item in list(value._items()):
            if not _traverse(item, join(path, key), value, pre, post):
                return False
    return not (post and post(path, value, parent) is Action.STOP)
