"""Nodes: calls that are not made yet, as trees of their arguments."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from flambeau.symbolic.containers import List, adopt
from flambeau.symbolic.errors import SymbolicError, nearest
from flambeau.symbolic.fields import check, is_callable_hint, refusal, testable
from flambeau.symbolic.paths import Key, parse_path
from flambeau.symbolic.symbol import Symbol
from flambeau.symbolic.tree import MISSING, Tree, attach, copy_value
from flambeau.symbolic.values import order_key, same, value_hash


class Node(Tree):
    """A call of a class or function as data. Arguments read as attributes (``node.lr``) or by path
    (``node["layers[2].channels"]``); an argument called like a method of the node only by path.

    Made by calling a :class:`Symbol`.
    """

    def __init__(self, symbol: Symbol, given: Mapping[str, Any], late: bool):
        self._symbol, self._late = symbol, late
        self._args: dict[str, Any] = {}
        label = symbol.label
        for name, field in symbol.fields.items():
            if field.kind is inspect.Parameter.VAR_KEYWORD:
                continue
            value = given.get(name, MISSING)
            if value is MISSING:
                self._put(name, self._default(name))
            elif field.kind is inspect.Parameter.VAR_POSITIONAL:
                checked = [check(field.hint, item, f"{label}[{i}]") for i, item in enumerate(value)]
                self._put(name, self._adopted(checked, f"{label}.{name}"))
            else:
                self._put(name, self._accept(name, value, f"{label}.{name}"))
        for name, value in given.items():
            if name not in self._args:
                self._put(name, self._accept(name, value, f"{label}.{name}"))
        self._validate(label)

    # Reading.

    @property
    def symbol(self) -> Symbol:
        """The symbol that made this node."""
        return self._symbol

    @property
    def target(self) -> Any:
        """The class or function to be called."""
        return self._symbol.target

    @property
    def late(self) -> bool:
        """Whether this builds a ``functools.partial`` of the target instead of calling it."""
        return self._late

    @property
    def args(self) -> Mapping[str, Any]:
        """The arguments that have a value (given or default), in the order of the signature; read-only."""
        return MappingProxyType({name: value for name, value in self._args.items() if value is not MISSING})

    @property
    def missing(self) -> list[str]:
        """The paths of all required arguments that have no value, here and below."""
        found: list[str] = []

        def visit(path: str, value: Any, parent: Tree | None) -> None:
            if value is MISSING:
                found.append(path)

        self.traverse(visit)
        return found

    def get(self, path: str, default: Any = MISSING) -> Any:
        """The value at `path`, or `default` if there is none.

        Raises:
            SymbolicError: no such path (with the nearest names), and no default given.
        """
        try:
            value = self._walk(parse_path(path))
            value = value._resolve() if isinstance(value, Node) else value
            if value is MISSING:
                raise SymbolicError(f"{path}: this argument is missing")
        except SymbolicError:
            if default is MISSING:
                raise
            return default
        return value

    def has(self, path: str) -> bool:
        """Whether there is a value at `path`."""
        absent = object()
        return self.get(path, absent) is not absent

    def __getitem__(self, path: str) -> Any:
        return self.get(path)

    def __contains__(self, path: str) -> bool:
        return self.has(path)

    def __iter__(self) -> Iterator[str]:
        return iter(self.args)

    def __getattr__(self, name: str) -> Any:
        args = self.__dict__.get("_args")
        if args is None or name.startswith("__"):
            raise AttributeError(name)
        value = args.get(name, MISSING)
        if value is MISSING:
            why = "is missing" if name in args else f"is unknown{nearest(name, args)}"
            raise AttributeError(f"{self._symbol.label}: argument {name!r} {why}")
        return value._resolve() if isinstance(value, Node) else value

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith("_"):
            raise AttributeError(f"{self._symbol.label}.{name}: change arguments by rebind({name}=...)")
        object.__setattr__(self, name, value)

    def __dir__(self) -> Iterable[str]:
        return [*object.__dir__(self), *self._args]

    # Comparing and showing.

    def _same(self, other: Node) -> bool:
        if self.target != other.target or self._late != other._late or self._args.keys() != other._args.keys():
            return False
        return all(same(value, other._args[name]) for name, value in self._args.items())

    def __eq__(self, other: object) -> bool:
        return same(self, other) if isinstance(other, Node) else NotImplemented

    def __hash__(self) -> int:
        return hash((self._symbol.name, self._late, *(value_hash(value) for value in self._args.values())))

    def __lt__(self, other: Any) -> bool:
        return order_key(self) < order_key(other)

    def __gt__(self, other: Any) -> bool:
        return order_key(other) < order_key(self)

    def __repr__(self) -> str:
        shown = []
        for name, value in self._args.items():
            if name == self._symbol.variable:
                shown += [repr(item) for item in value]
            elif not self._is_default(name):
                shown.append(f"{name}={value!r}")
        return f"{self._symbol.label}{'.partial' if self._late else ''}({', '.join(shown)})"

    def __getstate__(self) -> dict[str, Any]:
        return {"_symbol": self._symbol, "_late": self._late, "_args": dict(self._args)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        for value in self._args.values():
            attach(value, self)

    def __deepcopy__(self, memo: dict[int, Any]) -> Node:
        return self._copy({})

    # As a tree.

    def _items(self) -> Iterable[tuple[Key, Any]]:
        return self._args.items()

    def _put(self, key: Key, value: Any) -> None:
        self._args[key] = value  # type: ignore[index]
        attach(value, self)

    @property
    def _variable(self) -> str | None:
        return self._symbol.variable

    def _child(self, key: Key, path: str) -> Any:
        if isinstance(key, int) and self._symbol.variable is not None:
            return self._args[self._symbol.variable]._child(key, path)
        if key in self._args:
            return self._args[key]  # type: ignore[index]
        if isinstance(key, str) and self._symbol.extra is not None:
            return MISSING
        raise SymbolicError(f"{path}: {self._symbol.label} has no argument {key!r}{nearest(str(key), self._args)}")

    def _hint(self, key: Key) -> Any:
        field = self._symbol.field(key) if isinstance(key, str) else None
        if field is None:
            return Any
        return list[field.hint] if field.kind is inspect.Parameter.VAR_POSITIONAL else field.hint  # type: ignore[name-defined]

    def _accept(self, key: Key, value: Any, path: str) -> Any:
        field = self._symbol.field(str(key))
        if field is None:
            raise SymbolicError(f"{path}: {self._symbol.label} has no argument {key!r}{nearest(str(key), self._args)}")
        if value is MISSING:
            default = self._default(str(key))
            if default is MISSING and not self._late:
                raise SymbolicError(f"{path}: {self._symbol.label} requires this argument")
            return default
        if value is field.default:  # whatever the annotation says, as in ``rate: float = None``
            return self._adopted(_fresh(value), path)
        return super()._accept(key, value, path)

    def _adopted(self, value: Any, path: str) -> Any:
        return adopt(value, home=self.root, path=path)

    def _default(self, name: str) -> Any:
        field = self._symbol.fields.get(name)
        if field is None or field.required:
            return MISSING
        if field.kind is inspect.Parameter.VAR_POSITIONAL:
            return List()
        return self._adopted(_fresh(field.default), name)

    def _is_default(self, name: str) -> bool:
        field = self._symbol.fields.get(name)
        value = self._args[name]
        if value is MISSING:
            return True
        if field is None or field.required:
            return False
        return value is field.default or same(value, self._default(name))

    def _absent(self) -> list[str]:
        return [] if self._late else [name for name, value in self._args.items() if value is MISSING]

    def _copy(self, swap: dict[int, Any]) -> Any:
        copy = object.__new__(type(self))
        args: dict[str, Any] = {}
        copy.__dict__.update(_symbol=self._symbol, _late=self._late, _args=args)
        for name, value in self._args.items():
            if isinstance(value, Tree):
                value = copy_value(value, swap)
                attach(value, copy)
            args[name] = value
        return copy

    def _refuse_build(self, path: str) -> None:
        """Raise if this is something that has no ordinary object yet."""

    def _resolve(self) -> Any:
        """The value that is read at this place; only inferred values differ from themselves."""
        return self

    def _check_as(self, hint: Any, path: str) -> Any:
        """This node if what it builds fits the annotation."""
        origin = get_origin(hint)
        if origin is Annotated:
            return self._check_as(get_args(hint)[0], path)
        if hint is Any or hint is object:
            return self
        if origin in (Union, UnionType):
            if any(self._fits(option, path) for option in get_args(hint)):
                return self
            raise refusal(hint, self, path)
        if origin is Literal:
            raise refusal(hint, self, path)
        if self._late:
            if is_callable_hint(hint) or hint is functools.partial or origin is functools.partial:
                return self
            if testable(hint) or origin is not None:
                raise refusal(hint, self, path)
            return self
        made = self._symbol.returns
        if is_callable_hint(hint):
            if inspect.isclass(made) and testable(made) and not callable_instances(made):
                raise refusal(hint, self, path)
            return self
        wanted = origin if inspect.isclass(origin) else hint
        if not testable(wanted) or not testable(made):
            return self
        if issubclass(made, wanted) or (made is int and wanted is float) or made is object:
            return self
        raise refusal(hint, self, path)

    def _fits(self, hint: Any, path: str) -> bool:
        try:
            self._check_as(hint, path)
        except SymbolicError:
            return False
        return True


def _fresh(default: Any) -> Any:
    """A default without ties to other trees that were made from it."""
    if isinstance(default, Tree):
        return default.clone()
    if type(default) in (list, tuple):
        return type(default)(map(_fresh, default))
    return {key: _fresh(item) for key, item in default.items()} if type(default) is dict else default


def callable_instances(cls: type) -> bool:
    """Whether the instances of a class can be called."""
    return any("__call__" in vars(base) for base in cls.__mro__)
