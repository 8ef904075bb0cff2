"""Symbols: classes and functions whose calls make nodes."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from flambeau.symbolic.errors import SymbolicError, nearest
from flambeau.symbolic.fields import Field, namespace_of, resolve, shorten

if TYPE_CHECKING:
    from flambeau.symbolic.node import Node

# Symbols alive in this process, by name: one symbol a target, and what a file may name without being trusted.
_SYMBOLS: weakref.WeakValueDictionary[str, Symbol] = weakref.WeakValueDictionary()

POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class Symbol:
    """A class or function whose calls make nodes: ``Linear = symbolize(torch.nn.Linear); Linear(3, 4).build()``.

    Attributes:
        target: the class or function; nothing of it is touched.
        name: ``module:qualified name``.
        fields: its parameters by name.
    """

    def __init__(self, target: Callable[..., Any], kind: type[Node] | None = None):
        from flambeau.symbolic.node import Node

        self.target, self.kind = target, kind or Node
        self.name = name_of(target)
        namespace = namespace_of(target)
        try:
            signature = inspect.signature(target)
        except (ValueError, TypeError) as error:
            raise SymbolicError(f"{self.name}: its signature is not known, so its calls cannot be symbolic") from error
        self.fields = {name: Field(parameter, namespace) for name, parameter in signature.parameters.items()}
        self._namespace, self._returns = namespace, signature.return_annotation
        kinds = {field.kind: name for name, field in self.fields.items()}
        self.variable = kinds.get(inspect.Parameter.VAR_POSITIONAL)
        self.extra = kinds.get(inspect.Parameter.VAR_KEYWORD)
        self.__doc__ = target.__doc__

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """A node for the call ``target(*args, **kwargs)``; all required arguments must be given.

        Raises:
            SymbolicError: an unknown or missing argument, or one that its annotation does not accept.
        """
        node = self.kind(self, self._bind(args, kwargs), late=False)
        if absent := node._absent():
            raise SymbolicError(f"{self.label}: missing {' and '.join(absent)}; {self.label}.partial leaves them open")
        return node

    def partial(self, *args: Any, **kwargs: Any) -> Any:
        """A late-bound node: it builds ``functools.partial(target, ...)`` of the arguments given so far."""
        return self.kind(self, self._bind(args, kwargs), late=True)

    @property
    def label(self) -> str:
        """The target's own name, as shown."""
        return self.target.__qualname__.rpartition("<locals>.")[2]

    @property
    def returns(self) -> Any:
        """What a call gives: the class itself, or the return annotation of a function (Any if unknown)."""
        return self.target if inspect.isclass(self.target) else resolve(self._returns, self._namespace)

    def field(self, name: str) -> Field | None:
        """The parameter that takes the argument `name`, or None."""
        field = self.fields.get(name)
        if field is not None and field.kind is not inspect.Parameter.VAR_KEYWORD:
            return field
        return self.fields[self.extra] if self.extra is not None else None

    def _bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        positional = [name for name, field in self.fields.items() if field.kind in POSITIONAL]
        bound = dict(zip(positional, args))
        if len(args) > len(positional):
            if self.variable is None:
                raise SymbolicError(f"{self.label}: takes {len(positional)} positional arguments, got {len(args)}")
            bound[self.variable] = list(args[len(positional) :])
        for name, value in kwargs.items():
            if name in bound:
                raise SymbolicError(f"{self.label}.{name}: given twice")
            if self.field(name) is None:
                raise SymbolicError(f"{self.label}: unknown argument {name!r}{nearest(name, self.fields)}")
            bound[name] = value
        return bound

    def _as_value(self) -> Any:
        return self.target

    def __repr__(self) -> str:
        return f"symbolize({self.name})"

    def __reduce__(self) -> Any:
        return symbolize, (self.target,)


def symbolize(target: Any) -> Symbol:
    """The symbol of a class or function (also usable as a decorator). Its arguments are typed by its annotations.

    Raises:
        TypeError: `target` is neither.
    """
    if isinstance(target, Symbol):
        return target
    if not (inspect.isclass(target) or inspect.isroutine(target)):
        raise TypeError(f"symbolize takes a class or a function, got {shorten(target)} ({type(target).__name__})")
    return symbol_of(target, None)


def symbol_of(target: Any, kind: type[Node] | None) -> Symbol:
    """The one living symbol of a target, made if need be."""
    symbol = _SYMBOLS.get(name_of(target))
    if symbol is None or symbol.target != target:
        symbol = Symbol(target, kind)
        _SYMBOLS[symbol.name] = symbol
    return symbol


def registered(name: str) -> Symbol | None:
    """The living symbol with this ``module:qualified name``, if it was symbolised in this process."""
    return _SYMBOLS.get(name)


def name_of(target: Any) -> str:
    """``module:qualified name`` of a class or function."""
    module = getattr(target, "__module__", None) or getattr(getattr(target, "__self__", None), "__name__", None)
    return f"{module or 'builtins'}:{getattr(target, '__qualname__', type(target).__qualname__)}"
