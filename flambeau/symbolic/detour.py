"""Replacing constructors inside a scope, in code that cannot be changed."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from flambeau.symbolic.symbol import Symbol

_ACTIVE: ContextVar[dict[type, Callable[..., Any]]] = ContextVar("detours", default={})  # noqa: B039 - never mutated
_ENTRANCES: dict[type, int] = {}  # scopes that detour a class, in all threads
_LOCK = threading.Lock()


@contextmanager
def detour(replacements: Mapping[type, Any]) -> Iterator[None]:
    """Inside the scope, constructing a class of `replacements` constructs what it maps to instead.

    Args:
        replacements: class -> class, symbol or function called with the constructor's arguments. A function may call
            the original class: detours do not apply inside replacements. Inner scopes win over outer ones;
            subclasses and other threads are not affected.

    Raises:
        TypeError: a key that is not a class of Python code, or a replacement that cannot be called.
    """
    for original, replacement in replacements.items():
        if not inspect.isclass(original) or not original.__flags__ & (1 << 9):
            raise TypeError(f"detour: expected a class defined in Python, got {original!r}")
        if not callable(replacement):
            raise TypeError(f"detour of {original.__qualname__}: expected a class or function, got {replacement!r}")
    with _LOCK:
        for original in replacements:
            _ENTRANCES[original] = _ENTRANCES.get(original, 0) + 1
            if not isinstance(original.__dict__.get("__new__"), _Entrance):
                original.__new__ = _Entrance(original)  # type: ignore[method-assign, assignment]
    token = _ACTIVE.set(_ACTIVE.get() | dict(replacements))
    try:
        yield
    finally:
        _ACTIVE.reset(token)
        with _LOCK:
            for original in replacements:
                _ENTRANCES[original] -= 1
                if not _ENTRANCES[original]:
                    del _ENTRANCES[original]
                    original.__dict__["__new__"].restore()


class _Entrance(staticmethod):
    """The ``__new__`` of a detoured class: goes to the replacement inside a scope, to the original outside."""

    def __init__(self, owner: type):
        self.owner, self.before = owner, owner.__dict__.get("__new__")
        original = self.before.__func__ if isinstance(self.before, staticmethod) else _inherited(owner)

        def construct(cls: type, *args: Any, **kwargs: Any) -> Any:
            replacement = _ACTIVE.get().get(owner) if cls is owner else None
            if replacement is None:
                return original(cls, *args, **kwargs)
            token = _ACTIVE.set({})
            try:
                made = (replacement.target if isinstance(replacement, Symbol) else replacement)(*args, **kwargs)
            finally:
                _ACTIVE.reset(token)
            if isinstance(made, owner):
                _skip_next_init(type(made))
            return made

        super().__init__(_documented(construct, owner))

    def restore(self) -> None:
        """Take the entrance away again.

        A class without a ``__new__`` of its own keeps an equivalent one: CPython does not go back to ``object.__new__``
        when it is deleted (bpo-25731), and would refuse the constructor's arguments.
        """
        self.owner.__new__ = self.before or staticmethod(_inherited(self.owner))  # type: ignore[method-assign, assignment]


def _inherited(owner: type) -> Callable[..., Any]:
    """What ``owner.__new__`` would be if the class did not define it, with the arguments checked as by object."""

    def construct(cls: type, *args: Any, **kwargs: Any) -> Any:
        original = super(owner, cls).__new__  # type: ignore[arg-type]
        if original is not object.__new__:
            return original(cls, *args, **kwargs)
        if (args or kwargs) and cls.__init__ is object.__init__:  # type: ignore[misc]
            raise TypeError(f"{cls.__name__}() takes no arguments")
        return original(cls)

    return _documented(construct, owner)


def _documented(construct: Callable[..., Any], owner: type) -> Callable[..., Any]:
    """`construct` with the signature of the class's constructor, which ``inspect.signature`` would otherwise lose."""
    if owner.__init__ is not object.__init__:  # type: ignore[misc]
        construct.__signature__ = inspect.signature(owner.__init__)  # type: ignore[attr-defined, misc]
    return construct


def _skip_next_init(cls: type) -> None:
    """``type.__call__`` initialises what ``__new__`` returns; the replacement has done so, with its own arguments."""
    own = cls.__dict__.get("__init__")

    def once(self: Any, *args: Any, **kwargs: Any) -> None:
        if own is None:
            del cls.__init__  # type: ignore[misc]
        else:
            cls.__init__ = own  # type: ignore[misc]

    cls.__init__ = once  # type: ignore[misc]
