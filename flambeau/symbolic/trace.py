"""Dynamic evaluation: the search space of a plain program, found by running it (Peng et al. 2020, section 3.3)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from flambeau.symbolic.containers import List
from flambeau.symbolic.dna import DNA
from flambeau.symbolic.errors import SymbolicError
from flambeau.symbolic.fields import shorten
from flambeau.symbolic.hyper import DECIDER, Hyper
from flambeau.symbolic.space import Space
from flambeau.symbolic.template import Template


class Trace:
    """The decisions that a program meets, in order; equal to the template of a list of its hyper values.

    Attributes:
        value: what the program returned while it was traced, every decision being the first.
        hypers: the hyper values met; one per name for those that are named.
    """

    def __init__(self, function: Callable[[], Any]):
        self.function = function
        self.hypers: list[Hyper] = []
        self._named: dict[str, Any] = {}
        token = DECIDER.set(self._collect)
        try:
            self.value = function()
        finally:
            DECIDER.reset(token)
        self._template = Template(List(hyper.clone() for hyper in self.hypers))

    @property
    def spec(self) -> Space:
        """The search space."""
        return self._template.spec

    @property
    def space_size(self) -> int | float:
        """How many programs there are."""
        return self._template.space_size

    def decode(self, dna: DNA) -> Decided:
        """The decisions of `dna`: ``with trace.decode(dna)(): ...`` runs code under them."""
        return Decided(self.hypers, list(self._template.decode(dna)))

    def encode(self, decided: Decided) -> DNA:
        """The inverse of :meth:`decode`."""
        return self._template.encode(List(decided.values))

    def run(self, dna: DNA) -> Any:
        """Run the program with the decisions of `dna` and return what it returns."""
        with self.decode(dna)():
            return self.function()

    def __enter__(self) -> Trace:
        return self

    def __exit__(self, *exception: Any) -> None:
        return None

    def __repr__(self) -> str:
        return f"Trace({self.spec!r})"

    def _collect(self, hyper: Hyper) -> Any:
        if hyper.label is not None and hyper.label in self._named:
            known, value = self._named[hyper.label]
            if not known.equals(hyper):
                raise SymbolicError(f"{shorten(hyper)} has the name of another decision, {shorten(known)}")
            return value
        outside = DECIDER.set(None)
        try:
            first = Template(hyper)
            value = first.decode(first.spec.first())
        finally:
            DECIDER.reset(outside)
        self.hypers.append(hyper)
        if hyper.label is not None:
            self._named[hyper.label] = (hyper, value)
        return value


class Decided:
    """One program of a traced space. Called, it gives a context under which hyper values are the decided values."""

    def __init__(self, hypers: list[Hyper], values: list[Any]):
        self.hypers, self.values = hypers, values

    @contextmanager
    def __call__(self) -> Iterator[Decided]:
        """Decide, in order, the hyper values that the code in the context makes.

        Raises:
            SymbolicError: the code makes other hyper values than the traced program did, or more of them.
        """
        position = 0
        named = {h.label: value for h, value in zip(self.hypers, self.values) if h.label is not None}
        met: set[str] = set()

        def decide(hyper: Hyper) -> Any:
            nonlocal position
            if hyper.label in met:
                return named[hyper.label]  # type: ignore[index]
            if position >= len(self.hypers) or not self.hypers[position].equals(hyper):
                expected = shorten(self.hypers[position]) if position < len(self.hypers) else "none"
                raise SymbolicError(f"decision {position}: expected {expected} as when traced, got {shorten(hyper)}")
            position += 1
            if hyper.label is not None:
                met.add(hyper.label)
            return self.values[position - 1]

        token = DECIDER.set(decide)
        try:
            yield self
        finally:
            DECIDER.reset(token)

    def __repr__(self) -> str:
        return f"Decided({', '.join(map(shorten, self.values))})"


def trace(function: Callable[[], Any]) -> Trace:
    """Run ``function()`` once, every ``oneof(...)`` and so on in it giving its first candidate, and collect its space.

    Nested choices must be lazy (``oneof([lambda: oneof([1, 2]), 3])``) to be conditional, since a plain program
    evaluates the inner one first. ``trace(f).run(dna)`` runs the program as `dna` decides; ``sample(trace(f), ...)``
    hands out contexts: ``with example(): f()``.
    """
    return Trace(function)
