"""Evolution as composition: operations on lists of individuals (Peng et al. 2020, "PyGlove", section 4.3).

parent = Sample(10) >> Top(1)
child = parent >> Uniform().until_changed(5)
either = Choice([(Uniform(), 0.9), (Uniform() >> Uniform(), 0.1)])
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from flambeau.search.algorithm import Reward
from flambeau.symbolic import DNA, Spec


@dataclass(frozen=True)
class Individual:
    """A point of the space, and what it earned (None: not known)."""

    dna: DNA
    reward: Reward | None = None


@dataclass(frozen=True)
class Context:
    """What an operation may depend on besides its input: the space, a random generator, the count of proposals."""

    spec: Spec
    rng: random.Random
    step: int = 0
    prior: Any = None


Individuals = list[Individual]
Predicate = Callable[[Individuals], bool]


class Operation:
    """A function from individuals to individuals; subclasses define `__call__`."""

    def __call__(self, individuals: Individuals, context: Context) -> Individuals:
        raise NotImplementedError

    def __rshift__(self, then: Operation) -> Operation:
        """`a >> b`: b on what a returns."""
        return _Pipeline(self, then)

    def __add__(self, other: Operation) -> Operation:
        """`a + b`: what a returns, then what b returns, both on the same input."""
        return _Concatenation([self, other])

    def __mul__(self, times: int) -> Operation:
        """`a * n`: n times a on the same input, one after the other in a list."""
        if times < 1:
            raise ValueError(f"times: expected at least 1, got {times}")
        return _Concatenation([self] * times)

    def when(self, predicate: Predicate, otherwise: Operation | None = None) -> Operation:
        """This operation if `predicate(input)`, else `otherwise` (by default the input as it is)."""
        return _Conditional(predicate, self, otherwise or Identity())

    def until(self, predicate: Predicate, attempts: int = 100) -> Operation:
        """Repeats itself on the same input until `predicate(output)`; the last output after `attempts`."""
        return _Until(self, lambda _, output: predicate(output), attempts)

    def until_changed(self, attempts: int = 100) -> Operation:
        """Repeats itself until the output's points differ from the input's; the last output after `attempts`."""
        return _Until(self, lambda before, after: [i.dna for i in before] != [i.dna for i in after], attempts)


class Identity(Operation):
    """The input as it is."""

    def __call__(self, individuals: Individuals, context: Context) -> Individuals:
        return individuals


class Choice(Operation):
    """One of several operations, drawn in proportion to its weight."""

    def __init__(self, weighted: Sequence[tuple[Operation, float]]) -> None:
        self.operations = [operation for operation, _ in weighted]
        self.weights = [weight for _, weight in weighted]
        if not weighted or min(self.weights) < 0 or sum(self.weights) <= 0:
            raise ValueError(f"weighted: expected weights >= 0 with a positive sum, got {self.weights}")

    def __call__(self, individuals: Individuals, context: Context) -> Individuals:
        (operation,) = context.rng.choices(self.operations, self.weights)
        return operation(individuals, context)


class _Pipeline(Operation):
    def __init__(self, first: Operation, then: Operation) -> None:
        self.first, self.then = first, then

    def __call__(self, individuals: Individuals, context: Context) -> Individuals:
        return self.then(self.first(individuals, context), context)


class _Concatenation(Operation):
    def __init__(self, parts: list[Operation]) -> None:
        self.parts = parts

    def __call__(self, individuals: Individuals, context: Context) -> Individuals:
        return [individual for part in self.parts for individual in part(individuals, context)]


class _Conditional(Operation):
    def __init__(self, predicate: Predicate, yes: Operation, no: Operation) -> None:
        self.predicate, self.yes, self.no = predicate, yes, no

    def __call__(self, individuals: Individuals, context: Context) -> Individuals:
        return (self.yes if self.predicate(individuals) else self.no)(individuals, context)


class _Until(Operation):
    def __init__(self, operation: Operation, done: Callable[[Individuals, Individuals], bool], attempts: int) -> None:
        if attempts < 1:
            raise ValueError(f"attempts: expected at least 1, got {attempts}")
        self.operation, self.done, self.attempts = operation, done, attempts

    def __call__(self, individuals: Individuals, context: Context) -> Individuals:
        for _ in range(self.attempts):
            output = self.operation(individuals, context)
            if self.done(individuals, output):
                break
        return output
