"""Typed fields: what a parameter's annotation accepts, for plain values and for nodes that will build a value."""

from __future__ import annotations

import collections.abc
import inspect
import numbers
import pathlib
import sys
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from flambeau.symbolic.errors import SymbolicError
from flambeau.symbolic.paths import join

_abc = collections.abc
_LISTS = (list, _abc.Sequence, _abc.MutableSequence, _abc.Iterable, _abc.Collection)
_MAPPINGS = (dict, _abc.Mapping, _abc.MutableMapping)
_CONTAINERS = (list, tuple, dict)


@dataclass(frozen=True)
class Range:
    """Bounds of a number, both inclusive: ``Annotated[int, Range(1, None)]`` is a positive integer."""

    low: float | None = None
    high: float | None = None

    def check(self, value: Any, path: str) -> None:
        """Raise SymbolicError unless `value` lies in the range; NaN lies in none."""
        if (self.low is not None and not value >= self.low) or (self.high is not None and not value <= self.high):
            low = "-inf" if self.low is None else self.low
            high = "inf" if self.high is None else self.high
            raise SymbolicError(f"{path}: expected a value in [{low}, {high}], got {value!r}")


class Field:
    """A parameter of a class or function: its name, kind, default and annotation (resolved when first needed)."""

    def __init__(self, parameter: inspect.Parameter, namespace: dict[str, Any]):
        self.name, self.kind, self.default = parameter.name, parameter.kind, parameter.default
        self._annotation, self._namespace, self._resolved = parameter.annotation, namespace, False

    @property
    def required(self) -> bool:
        return self.default is inspect.Parameter.empty and self.kind not in (
            inspect.Parameter.VAR_POSITIONAL,
            inspect.Parameter.VAR_KEYWORD,
        )

    @property
    def hint(self) -> Any:
        """The annotation as an object; Any where it is absent or names something that cannot be found."""
        if not self._resolved:
            self._annotation = resolve(self._annotation, self._namespace)
            self._resolved = True
        return self._annotation


def resolve(annotation: Any, namespace: dict[str, Any]) -> Any:
    """An annotation as an object. One that cannot be resolved (a name imported for type checkers only) becomes Any."""
    if annotation is inspect.Parameter.empty:
        return Any
    holder = types.SimpleNamespace(__annotations__={"hint": annotation})
    try:
        return typing.get_type_hints(holder, globalns=namespace, localns={}, include_extras=True)["hint"]
    except Exception:  # an annotation is documentation: whatever goes wrong in it must not stop the program
        return Any


def namespace_of(target: Any) -> dict[str, Any]:
    """Where the names in a target's annotations are looked up."""
    function = target.__init__ if inspect.isclass(target) else inspect.unwrap(target)
    if hasattr(function, "__globals__"):
        return function.__globals__
    module = sys.modules.get(getattr(target, "__module__", None) or "")
    return vars(module) if module else {}


def check(hint: Any, value: Any, path: str) -> Any:
    """`value` if the annotation `hint` accepts it, converted where that loses nothing (int to float, list to tuple).

    Nodes are judged by what they build, hyper values by all their candidates. Annotations that say nothing testable
    (jaxtyping, protocols, type variables) accept everything.

    Raises:
        SymbolicError: the value does not fit; the message has the path, the annotation and the value.
    """
    if hint is Any or hint is object:
        return value
    if hasattr(value, "_check_as"):
        return value._check_as(hint, path)
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        value = check(arguments[0], value, path)
        for constraint in arguments[1:]:
            if isinstance(constraint, Range) and value is not None:
                constraint.check(value, path)
        return value
    if origin in (Union, types.UnionType):
        return _check_union(hint, arguments, value, path)
    if origin is Literal:
        if any(type(value) is type(option) and value == option for option in arguments):
            return value
        raise refusal(hint, value, path)
    if origin is type:
        base = arguments[0]
        if inspect.isclass(value) and (not testable(base) or issubclass(value, base)):
            return value
        raise refusal(hint, value, path)
    if origin is collections.abc.Callable or hint is collections.abc.Callable:
        if callable(value):
            return value
        raise refusal(hint, value, path)
    if hint is tuple or origin is tuple:
        return _check_tuple(hint, arguments, value, path)
    if hint in _LISTS or origin in _LISTS:
        return _check_list(hint, origin or hint, arguments, value, path)
    if hint in _MAPPINGS or origin in _MAPPINGS:
        if not isinstance(value, collections.abc.Mapping):
            raise refusal(hint, value, path)
        return _check_values(value, arguments, path)
    return _check_class(hint, value, path)


def accepts(hint: Any, value: Any) -> bool:
    """Whether the annotation accepts the value."""
    try:
        check(hint, value, "")
    except SymbolicError:
        return False
    return True


def refusal(hint: Any, value: Any, path: str) -> SymbolicError:
    """The error for a value that an annotation does not accept."""
    return SymbolicError(f"{path}: expected {show(hint)}, got {shorten(value)} ({type(value).__name__})")


def show(hint: Any) -> str:
    """An annotation as a reader would write it."""
    if get_origin(hint) is Annotated:
        constraints = ", ".join(map(repr, get_args(hint)[1:]))
        return f"{show(get_args(hint)[0])} ({constraints})"
    if hint is type(None):
        return "None"
    return hint.__name__ if inspect.isclass(hint) and not get_args(hint) else str(hint).replace("typing.", "")


def shorten(value: Any, length: int = 80) -> str:
    """repr(value), cut to `length` characters."""
    try:
        text = repr(value)
    except Exception:
        text = f"<{type(value).__name__}>"
    return text if len(text) <= length else text[: length - 3] + "..."


def element(hint: Any, key: Any) -> Any:
    """The annotation of the child `key` of a container annotated `hint`."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return element(arguments[0], key)
    if origin in (Union, types.UnionType):
        options = [element(option, key) for option in arguments if get_origin(option) or option in _CONTAINERS]
        return Any if not options or Any in options else Union[tuple(options)]  # noqa: UP007 - built from a list
    if origin is tuple and not (len(arguments) == 2 and arguments[1] is Ellipsis):
        return arguments[key] if isinstance(key, int) and key < len(arguments) else Any
    if origin in _MAPPINGS and len(arguments) == 2:
        return arguments[1]
    if (origin is tuple or origin in _LISTS) and arguments:
        return arguments[0]
    return Any


def _check_union(hint: Any, options: tuple[Any, ...], value: Any, path: str) -> Any:
    converted: list[Any] = []
    inside: list[SymbolicError] = []
    for option in options:
        try:
            found = check(option, value, path)
        except SymbolicError as error:
            inside += [] if str(error).startswith(f"{path}: ") else [error]
            continue
        if found is value:
            return value
        converted.append(found)
    if converted:
        return converted[0]
    if inside:
        raise inside[0]  # the container fits, something in it does not
    raise refusal(hint, value, path)


def _check_tuple(hint: Any, arguments: tuple[Any, ...], value: Any, path: str) -> Any:
    if not isinstance(value, (tuple, list)):
        raise refusal(hint, value, path)
    open_ended = len(arguments) == 2 and arguments[1] is Ellipsis
    if arguments and not open_ended and len(value) != len([a for a in arguments if a != ()]):
        raise refusal(hint, value, path)
    items = [check(element(hint, i), item, join(path, i)) for i, item in enumerate(value)]
    unchanged = isinstance(value, tuple) and all(a is b for a, b in zip(items, value))
    return value if unchanged else tuple(items)


def _check_list(hint: Any, kind: Any, arguments: tuple[Any, ...], value: Any, path: str) -> Any:
    if isinstance(value, (str, bytes)) or not isinstance(value, (list, tuple) if kind is list else kind):
        raise refusal(hint, value, path)
    if not arguments or not isinstance(value, (list, tuple)):
        return list(value) if kind is list and isinstance(value, tuple) else value
    items = [check(arguments[0], item, join(path, i)) for i, item in enumerate(value)]
    unchanged = all(a is b for a, b in zip(items, value)) and not (kind is list and isinstance(value, tuple))
    return value if unchanged else tuple(items) if isinstance(value, tuple) and kind is not list else items


def _check_values(value: Any, arguments: tuple[Any, ...], path: str) -> Any:
    if len(arguments) != 2:
        return value
    for key in value:
        check(arguments[0], key, join(path, key))
    items = {key: check(arguments[1], item, join(path, key)) for key, item in value.items()}
    return value if all(items[key] is item for key, item in value.items()) else items


def _check_class(hint: Any, value: Any, path: str) -> Any:
    if hint is None or hint is type(None):
        fits = value is None
    elif hint is bool:
        fits = isinstance(value, bool) or type(value).__name__ in ("bool_", "bool")
        value = bool(value) if fits else value
    elif hint is int:
        fits = isinstance(value, numbers.Integral) and not isinstance(value, bool)
        value = int(value) if fits and not isinstance(value, int) else value
    elif hint is float:
        fits = isinstance(value, numbers.Real) and not isinstance(value, bool)
        value = float(value) if fits and type(value) is not float else value
    elif hint is pathlib.Path:
        fits = isinstance(value, (str, pathlib.PurePath))
        value = pathlib.Path(value) if isinstance(value, str) else value
    elif testable(hint):
        fits = isinstance(value, hint)
    else:
        fits = True
    if not fits:
        raise refusal(hint, value, path)
    return value


def testable(hint: Any) -> bool:
    """Whether ``isinstance(x, hint)`` means what the annotation says."""
    if not inspect.isclass(hint) or hint is Any or get_origin(hint) is not None:  # Any is a class since 3.11
        return False
    if type(hint).__module__.startswith("jaxtyping") or hint.__module__.startswith("jaxtyping"):
        return False
    return not getattr(hint, "_is_protocol", False) and not typing.is_typeddict(hint)


def is_callable_hint(hint: Any) -> bool:
    """Whether the annotation asks for something to call."""
    return hint is collections.abc.Callable or get_origin(hint) is collections.abc.Callable or hint is Callable
