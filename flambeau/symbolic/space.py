"""Search spaces: trees of decision points that know nothing of the program they came from."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flambeau.symbolic.dna import DNA
from flambeau.symbolic.errors import SymbolicError, nearest

if TYPE_CHECKING:
    import random

    from flambeau.symbolic.prior import DesignPrior

DEEPEST = 48  # nesting beyond which a lazy space counts as unbounded
MOST = 20_000  # decision points looked at before a lazy space counts as unbounded

Number = int | float | str


class Unbounded(Exception):
    """A lazy space was followed further than any finite space would go."""


@dataclass(frozen=True, eq=False)
class Decision:
    """A decision that is due: the point, its identity in this program, and what may be chosen.

    Attributes:
        point: the decision point.
        id: the path in the program, for several choices with the position, as in ``layers[1]``.
        options: the candidate indices allowed here; None for a float or custom decision.
    """

    point: Point
    id: str
    options: Sequence[int] | None

    @property
    def name(self) -> str:
        """The name given to the hyper value, else the id."""
        return self.point.name or self.id


class Point:
    """One decision point.

    Attributes:
        id: path of the hyper value in the program.
        name: the name given to the hyper value, or None.
        hints: whatever the hyper value carries for algorithms.
    """

    id: str
    name: str | None
    hints: Any

    def first(self) -> DNA:
        raise NotImplementedError

    def next(self, dna: DNA) -> DNA | None:
        raise NotImplementedError

    def random(self, rng: random.Random, prior: DesignPrior | None = None) -> DNA:
        raise NotImplementedError

    def log_prob(self, dna: DNA, prior: DesignPrior | None = None) -> float:
        raise NotImplementedError

    def validate(self, dna: DNA) -> None:
        raise NotImplementedError

    def count(self, budget: Budget) -> int | float:
        raise NotImplementedError

    def grow(self) -> Generator[Decision, Any, DNA]:
        """Yield each decision as it falls due, take what was decided, return the DNA."""
        raise NotImplementedError

    def outline(self, budget: Budget) -> Any:
        """What equality of spaces compares, as plain values."""
        raise NotImplementedError


class Budget:
    """How far a possibly unbounded space is still followed."""

    def __init__(self, depth: int = DEEPEST, points: int = MOST):
        self.depth, self.points = depth, points

    def enter(self) -> None:
        self.depth -= 1
        self.points -= 1
        if self.depth < 0 or self.points < 0:
            raise Unbounded

    def leave(self) -> None:
        self.depth += 1


class Space:
    """A search space: decision points that are all decided, each of which may open further spaces.

    Two spaces are equal if their structure is: kinds, numbers of candidates, constraints, ranges, names, inner spaces.
    An algorithm that sees only a space and DNA proposes the same for programs with equal spaces.

    Attributes:
        points: the decision points, in order.
    """

    def __init__(self, points: Sequence[Point] = ()):
        self.points = tuple(points)

    @property
    def size(self) -> int | float:
        """How many DNA there are; ``math.inf`` with a float or custom decision, or in an unbounded lazy space."""
        try:
            return self.count(Budget())
        except Unbounded:
            return math.inf

    def first(self) -> DNA:
        """The DNA that enumeration starts with: first candidates, lower bounds, initial values."""
        return DNA(None, [point.first() for point in self.points])

    def next(self, dna: DNA) -> DNA | None:
        """The DNA after `dna` in enumeration, the last decision changing fastest; None after the last.

        Raises:
            SymbolicError: a float or custom decision, which cannot be enumerated.
        """
        children = self._next(dna.children)
        return None if children is None else DNA(None, children)

    def iter(self) -> Iterator[DNA]:
        """Every DNA in order."""
        dna: DNA | None = self.first()
        while dna is not None:
            yield dna
            dna = self.next(dna)

    def __iter__(self) -> Iterator[DNA]:
        return self.iter()

    def random(self, rng: random.Random, prior: DesignPrior | None = None) -> DNA:
        """A DNA with every decision drawn by itself: uniformly, or as `prior` says."""
        try:
            return DNA(None, [point.random(rng, prior) for point in self.points])
        except RecursionError:
            raise SymbolicError("a random program of this unbounded space became too deep; give a prior") from None

    def log_prob(self, dna: DNA, prior: DesignPrior | None = None) -> float:
        """The log probability that :meth:`random` with this prior gives `dna`; for floats a density over the value."""
        return sum((point.log_prob(child, prior) for point, child in zip(self.points, dna.children)), 0.0)

    def validate(self, dna: DNA) -> DNA:
        """Return `dna` if it belongs to this space.

        Raises:
            SymbolicError: a decision that is absent, too many, out of range, repeated or not sorted; with its path.
        """
        if not isinstance(dna, DNA):
            raise SymbolicError(f"expected a DNA, got {dna!r}")
        if dna.value is not None:
            raise SymbolicError(f"a DNA of a whole space has no value of its own, got {dna!r}")
        self._validate(dna.children, "the space")
        return dna

    def grow(self) -> Generator[Decision, Any, DNA]:
        """Yield each decision as it falls due, take what was decided, return the DNA."""
        children = []
        for point in self.points:
            children.append((yield from point.grow()))
        return DNA(None, children)

    def next_decision(self, partial: Sequence[Number]) -> Decision | None:
        """The decision after `partial`, the decisions made so far as in ``dna.to_numbers()``; None at the end.

        Candidates are expanded only as they are chosen, so this also walks unbounded spaces.
        """
        walk = self.grow()
        try:
            decision = next(walk)
            for number in partial:
                decision = walk.send(number)
        except StopIteration as end:
            if (made := len(end.value.to_numbers())) != len(partial):
                raise SymbolicError(f"{len(partial)} decisions were given, this program has {made}") from None
            return None
        return decision

    def from_numbers(self, numbers: Sequence[Number]) -> DNA:
        """The DNA with these decisions in tree order.

        Raises:
            SymbolicError: too few or too many, or one that is not allowed where it falls.
        """
        given = iter(numbers)
        walk = self.grow()
        try:
            decision = next(walk)
            while True:
                try:
                    number = next(given)
                except StopIteration:
                    raise SymbolicError(f"{decision.id}: no decision left for it in {list(numbers)!r}") from None
                decision = walk.send(number)
        except StopIteration as end:
            if rest := list(given):
                raise SymbolicError(f"{len(rest)} decisions too many: {rest!r}") from None
            return end.value

    def decisions(self, dna: DNA) -> list[tuple[Decision, Number]]:
        """The decisions of `dna` with what was decided, in tree order; decisions not due in it do not appear."""
        found: list[tuple[Decision, Number]] = []
        walk = self.grow()
        try:
            decision = next(walk)
            for number in dna.to_numbers():
                found.append((decision, number))
                decision = walk.send(number)
        except StopIteration:
            pass
        return found

    def to_dict(self, dna: DNA) -> dict[str, Number]:
        """Name (or else path) of every decision made -> candidate index, float or string."""
        return {decision.name: number for decision, number in self.decisions(self.validate(dna))}

    def from_dict(self, decided: Mapping[str, Number]) -> DNA:
        """The inverse of :meth:`to_dict`; ids are accepted for names.

        Raises:
            SymbolicError: a decision that is absent, not allowed, or not due in this program.
        """
        used = set()
        walk = self.grow()
        try:
            decision = next(walk)
            while True:
                key = decision.name if decision.name in decided else decision.id
                if key not in decided:
                    raise SymbolicError(f"{decision.name}: this decision is absent{nearest(decision.name, decided)}")
                used.add(key)
                decision = walk.send(decided[key])
        except StopIteration as end:
            if unused := [key for key in decided if key not in used]:
                raise SymbolicError(f"{unused[0]}: not a decision of this program{nearest(unused[0], used)}") from None
            return end.value

    def features(self, dna: DNA) -> dict[str, float]:
        """Like ``dna.features()``, by names (or paths): ``name=index`` counts 1, ``name`` has the value of a float."""
        found: dict[str, float] = {}
        for decision, value in self.decisions(dna):
            number = isinstance(value, float)
            found[decision.name if number else f"{decision.name}={value}"] = float(value) if number else 1.0
        return found

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Space):
            return NotImplemented
        return self is other or self.outline(Budget(12, 2000)) == other.outline(Budget(12, 2000))

    def digest(self) -> str:
        """SHA-256 of the structure: equal spaces have equal digests, in every process."""
        import hashlib

        return hashlib.sha256(repr(self.outline(Budget(12, 2000))).encode()).hexdigest()

    def __hash__(self) -> int:
        return hash((len(self.points), *(type(point).__name__ for point in self.points)))

    def __len__(self) -> int:
        return len(self.points)

    def __repr__(self) -> str:
        return f"Spec({', '.join(map(repr, self.points))})"

    def count(self, budget: Budget) -> int | float:
        sizes = [point.count(budget) for point in self.points]
        return 0 if 0 in sizes else math.prod(sizes)

    def outline(self, budget: Budget) -> Any:
        """What equality of spaces compares, as plain values; candidates are followed as far as the budget goes."""
        return [point.outline(budget) for point in self.points]

    def _next(self, children: Sequence[DNA]) -> list[DNA] | None:
        for i in range(len(self.points) - 1, -1, -1):
            advanced = self.points[i].next(children[i])
            if advanced is not None:
                return [*children[:i], advanced, *(point.first() for point in self.points[i + 1 :])]
        return None

    def _validate(self, children: Sequence[DNA], where: str) -> None:
        if len(children) != len(self.points):
            raise SymbolicError(f"{where}: has {len(self.points)} decisions, got {len(children)}")
        for point, child in zip(self.points, children):
            point.validate(child)


EMPTY = Space()
