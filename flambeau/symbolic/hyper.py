"""Hyper values: stand-ins for a decision, written anywhere in a tree (Peng et al. 2020, PyGlove)."""

from __future__ import annotations

import inspect
import math
import types
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any

from flambeau.symbolic.errors import SymbolicError
from flambeau.symbolic.fields import check, element, shorten
from flambeau.symbolic.node import Node
from flambeau.symbolic.paths import Key, join
from flambeau.symbolic.symbol import Symbol, symbol_of
from flambeau.symbolic.values import same

# While a program is traced, hyper values become decisions as soon as they are made; see flambeau.symbolic.trace.
DECIDER: ContextVar[Callable[[Any], Any] | None] = ContextVar("DECIDER", default=None)


class Hyper(Node):
    """A value that is still to be decided. It cannot be built; a template turns it into a decision point."""

    def _refuse_build(self, path: str) -> None:
        raise SymbolicError(f"{path or 'the root'}: {shorten(self)} is not decided; decode a DNA of its template")

    def _fail(self, path: str, expected: str, got: Any) -> SymbolicError:
        return SymbolicError(f"{path}: {self._symbol.label} expects {expected}, got {shorten(got)}")

    @property
    def label(self) -> str | None:
        """The name that makes hyper values one decision, or None."""
        return self._args["name"]

    def equals(self, other: Any) -> bool:
        """Whether two hyper values are the same decision: equal but for hints, lazy candidates by their code."""
        if not isinstance(other, Hyper) or self.target != other.target:
            return False
        return all(name == "hints" or _alike(value, other._args[name]) for name, value in self._args.items())


class Choice(Hyper):
    """A choice among listed candidates."""

    @property
    def candidates(self) -> Sequence[Any]:
        return self._args["candidates"]

    @property
    def count(self) -> int:
        """How many are chosen."""
        return 1

    @property
    def distinct(self) -> bool:
        return True

    @property
    def ascending(self) -> bool:
        return False

    @property
    def many(self) -> bool:
        """Whether the value is a list of candidates rather than one."""
        return False

    def _hint(self, key: Key) -> Any:
        own = self._own_hint()
        return list[element(own, 0) if self.many else own] if key == "candidates" else Any  # type: ignore[misc]

    def _validate(self, path: str) -> None:
        candidates = self._args["candidates"]
        if not isinstance(candidates, (list, tuple)) or not candidates:
            raise self._fail(join(path, "candidates"), "a list with at least one candidate", candidates)

    def _check_as(self, hint: Any, path: str) -> Any:
        inner = element(hint, 0) if self.many else hint
        if self.many:
            check(hint, [c for c in self.candidates if not is_lazy(c)][: self.count], path)
        places = [f"{path}.candidates[{i}]" for i in range(len(self.candidates))]
        converted = [c if is_lazy(c) else check(inner, c, at) for c, at in zip(self.candidates, places)]
        if all(a is b for a, b in zip(converted, self.candidates)):
            return self
        given = dict(self._args) | {"candidates": converted}
        return type(self)(self._symbol, given, late=False)


class OneOf(Choice):
    """See :func:`oneof`."""


class ManyOf(Choice):
    """See :func:`manyof`."""

    count = property(lambda self: self._args["k"])  # type: ignore[assignment]
    distinct = property(lambda self: self._args["distinct"])  # type: ignore[assignment]
    ascending = property(lambda self: self._args["sorted"])  # type: ignore[assignment]
    many = property(lambda self: True)  # type: ignore[assignment]

    def _validate(self, path: str) -> None:
        super()._validate(path)
        k, n = self.count, len(self.candidates)
        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            raise self._fail(join(path, "k"), "a number of choices >= 1", k)
        if self.distinct and k > n:
            raise self._fail(join(path, "k"), f"at most {n} distinct choices out of {n} candidates", k)


class Permutation(Choice):
    """See :func:`permutate`."""

    count = property(lambda self: len(self._args["candidates"]))  # type: ignore[assignment]
    many = property(lambda self: True)  # type: ignore[assignment]


class IntValue(Hyper):
    """See :func:`intv`."""

    def _validate(self, path: str) -> None:
        lo, hi = self._args["lo"], self._args["hi"]
        if not all(isinstance(v, int) and not isinstance(v, bool) for v in (lo, hi)) or lo > hi:
            raise self._fail(path, "integers lo <= hi", (lo, hi))

    def _check_as(self, hint: Any, path: str) -> Any:
        check(hint, self._args["lo"], path)
        check(hint, self._args["hi"], path)
        return self


class FloatValue(Hyper):
    """See :func:`floatv`."""

    def _validate(self, path: str) -> None:
        lo, hi, scale = self._args["lo"], self._args["hi"], self._args["scale"]
        if not isinstance(lo, float) or not isinstance(hi, float) or not lo < hi or math.isinf(hi - lo):
            raise self._fail(path, "finite numbers lo < hi", (lo, hi))
        if scale not in ("linear", "log"):
            raise self._fail(join(path, "scale"), "'linear' or 'log'", scale)
        if scale == "log" and lo <= 0:
            raise self._fail(join(path, "lo"), "a number above 0 for a log scale", lo)

    def _check_as(self, hint: Any, path: str) -> Any:
        check(hint, self._args["lo"], path)
        check(hint, self._args["hi"], path)
        return self


class Evolve(Hyper):
    """See :func:`evolve`."""

    def _validate(self, path: str) -> None:
        if not callable(self._args["mutate"]):
            raise self._fail(join(path, "mutate"), "a function (value, rng) -> value", self._args["mutate"])

    def _hint(self, key: Key) -> Any:
        return self._own_hint() if key == "initial" else Any

    def _check_as(self, hint: Any, path: str) -> Any:
        check(hint, self._args["initial"], join(path, "initial"))
        return self


def is_lazy(candidate: Any) -> bool:
    """Whether a candidate is a function without parameters, to be called for the candidate when it is chosen."""
    if not isinstance(candidate, (types.FunctionType, types.MethodType)):
        return False
    return not inspect.signature(candidate).parameters


def _alike(a: Any, b: Any) -> bool:
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_alike, a, b))
    return same(a, b) or (is_lazy(a) and is_lazy(b) and a.__code__ == b.__code__)


def oneof(candidates: Sequence[Any], name: str | None = None, hints: Any = None) -> Any:
    """One of the candidates.

    Args:
        candidates: values, which may hold hyper values themselves. A function without parameters is lazy: it is called
            when the candidate is chosen, so a space may be recursive and without end.
        name: hyper values of one name are one decision; they must be equal.
        hints: anything; carried along for algorithms.

    Raises:
        SymbolicError: no candidates.
    """
    return _made(oneof, candidates=candidates, name=name, hints=hints)


def manyof(
    k: int,
    candidates: Sequence[Any],
    distinct: bool = True,
    sorted: bool = False,
    name: str | None = None,
    hints: Any = None,
) -> Any:
    """A list of `k` of the candidates.

    Args:
        distinct: no candidate twice.
        sorted: in the order in which the candidates are listed.

    The rest is as for :func:`oneof`.
    """
    return _made(manyof, k=k, candidates=candidates, distinct=distinct, sorted=sorted, name=name, hints=hints)


def permutate(candidates: Sequence[Any], name: str | None = None, hints: Any = None) -> Any:
    """The list of all candidates in some order."""
    return _made(permutate, candidates=candidates, name=name, hints=hints)


def floatv(lo: float, hi: float, scale: str = "linear", name: str | None = None, hints: Any = None) -> Any:
    """A number in [lo, hi], searched on a ``"linear"`` or ``"log"`` scale.

    Raises:
        SymbolicError: not finite, lo >= hi, or lo <= 0 on a log scale.
    """
    lo, hi = (float(v) if isinstance(v, int) and not isinstance(v, bool) else v for v in (lo, hi))
    return _made(floatv, lo=lo, hi=hi, scale=scale, name=name, hints=hints)


def intv(lo: int, hi: int, name: str | None = None, hints: Any = None) -> Any:
    """An integer in [lo, hi], both included."""
    return _made(intv, lo=lo, hi=hi, name=name, hints=hints)


def evolve(initial: Any, mutate: Callable[[Any, Any], Any], name: str | None = None, hints: Any = None) -> Any:
    """A program that is searched by changing it.

    Args:
        initial: the program to start from, a symbolic value that can be written as JSON.
        mutate: ``mutate(value, rng)`` gives a changed program; `value` is a copy of its own, `rng` a ``random.Random``.
    """
    return _made(evolve, initial=initial, mutate=mutate, name=name, hints=hints)


_KINDS: list[tuple[Any, type[Hyper]]] = [
    (oneof, OneOf),
    (manyof, ManyOf),
    (permutate, Permutation),
    (intv, IntValue),
    (floatv, FloatValue),
    (evolve, Evolve),
]
HYPER_SYMBOLS: dict[Any, Symbol] = {function: symbol_of(function, kind) for function, kind in _KINDS}


def _made(function: Any, **arguments: Any) -> Any:
    if isinstance(arguments.get("candidates"), range):
        arguments["candidates"] = list(arguments["candidates"])
    hyper = HYPER_SYMBOLS[function](**arguments)
    decide = DECIDER.get()
    return hyper if decide is None else decide(hyper)
