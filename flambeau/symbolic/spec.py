"""The specification of a search space: choices among candidates, numbers in a range, custom decisions."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING, Any

from flambeau.symbolic.dna import DNA
from flambeau.symbolic.errors import SymbolicError
from flambeau.symbolic.space import EMPTY, Budget, Decision, Point, Space, Unbounded

if TYPE_CHECKING:
    import random

    from flambeau.symbolic.prior import DesignPrior


Spec = Space


class Choices(Point):
    """A choice of `k` out of `n` candidates.

    Args:
        n: number of candidates.
        branch: ``branch(index, position)`` gives the space inside a candidate; None if no candidate holds decisions.
        k: how many are chosen.
        distinct: no candidate twice.
        sorted: in ascending order of index.
        labels: how the candidates are shown.
    """

    def __init__(
        self,
        id: str,
        n: int,
        branch: Callable[[int, int], Space] | None = None,
        *,
        k: int = 1,
        distinct: bool = True,
        sorted: bool = False,
        name: str | None = None,
        hints: Any = None,
        labels: Sequence[str] | None = None,
    ):
        self.id, self.n, self.k, self.distinct, self.sorted = id, n, k, distinct, sorted
        self.name, self.hints, self.labels = name, hints, labels
        self._branch = branch

    @property
    def constant(self) -> bool:
        """Whether no candidate holds decisions."""
        return self._branch is None

    def branch(self, index: int, position: int = 0) -> Space:
        """The space inside candidate `index` when it is chosen as number `position`."""
        return EMPTY if self._branch is None else self._branch(index, position)

    def options(self, chosen: Sequence[int] = ()) -> Sequence[int]:
        """The indices allowed next, after `chosen`."""
        if self.k == 1:
            return range(self.n)
        if self.sorted:
            low = chosen[-1] + self.distinct if chosen else 0
            return range(low, self.n - (self.k - len(chosen) - 1) if self.distinct else self.n)
        return [i for i in range(self.n) if i not in chosen] if self.distinct else range(self.n)

    def first(self) -> DNA:
        return self._join(self._complete([]))

    def next(self, dna: DNA) -> DNA | None:
        picks = self._picks(dna)
        for position in range(self.k - 1, -1, -1):
            pick, before = picks[position], picks[:position]
            inner = self.branch(pick.value, position)._next(pick.children)  # type: ignore[arg-type]
            if inner is not None:
                return self._join(self._complete([*before, DNA(pick.value, inner)]))
            chosen = [p.value for p in before]
            for option in self.options(chosen):  # type: ignore[arg-type]
                if option > pick.value:  # type: ignore[operator]
                    return self._join(self._complete([*before, self._first_pick(option, position)]))
        return None

    def random(self, rng: random.Random, prior: DesignPrior | None = None) -> DNA:
        weights = self._weights(prior)
        chosen: list[int] = []
        for _ in range(self.k):
            options = [i for i in range(self.n) if i not in chosen] if self.distinct and chosen else range(self.n)
            if weights is None:
                chosen.append(options[rng.randrange(len(options))])
            else:
                chosen.append(rng.choices(options, [weights[i] for i in options])[0])
        if self.sorted:
            chosen.sort()
        picks = [DNA(i, self.branch(i, j).random(rng, prior).children) for j, i in enumerate(chosen)]
        return self._join(picks)

    def log_prob(self, dna: DNA, prior: DesignPrior | None = None) -> float:
        from flambeau.symbolic.prior import log_prob_of_picks

        picks = self._picks(dna)
        weights = self._weights(prior) or [1.0] * self.n
        total = log_prob_of_picks([p.value for p in picks], weights, self.distinct and self.k > 1, self.sorted)  # type: ignore[misc]
        for position, pick in enumerate(picks):
            total += self.branch(pick.value, position).log_prob(DNA(None, pick.children), prior)  # type: ignore[arg-type]
        return total

    def validate(self, dna: DNA) -> None:
        if self.k > 1 and (dna.value is not None or len(dna.children) != self.k):
            raise SymbolicError(f"{self.id}: expected {self.k} choices, got {dna!r}")
        chosen: list[int] = []
        for position, pick in enumerate(self._picks(dna)):
            self._check(pick.value, chosen, position)
            chosen.append(pick.value)  # type: ignore[arg-type]
            self.branch(pick.value, position)._validate(pick.children, f"{self._at(position)}={pick.value}")  # type: ignore[arg-type]

    def grow(self) -> Generator[Decision, Any, DNA]:
        picks: list[DNA] = []
        chosen: list[int] = []
        for position in range(self.k):
            index = yield Decision(self, self._at(position), self.options(chosen))
            self._check(index, chosen, position)
            chosen.append(index)
            inner = yield from self.branch(index, position).grow()
            picks.append(DNA(index, inner.children))
        return self._join(picks)

    def count(self, budget: Budget) -> int | float:
        if self._branch is None and self.k == 1:
            return self.n
        sizes: Sequence[int | float] = [1] * self.n
        if self._branch is not None:
            budget.enter()
            sizes = [self.branch(i).count(budget) for i in range(self.n)]
            budget.leave()
        if self.k == 1:
            return sum(sizes)
        if self.sorted or self.distinct:
            ways: list[int | float] = [1, *[0] * self.k]  # ways[j]: choices of j among the candidates so far
            for size in sizes:
                for j in range(self.k, 0, -1) if self.distinct else range(1, self.k + 1):
                    if size and ways[j - 1]:
                        ways[j] += size * ways[j - 1]
            return ways[self.k] * (1 if self.sorted else math.factorial(self.k))
        return sum(sizes) ** self.k

    def outline(self, budget: Budget) -> Any:
        order = (self.distinct, self.sorted) if self.k > 1 else None
        inner: Any = None
        if self._branch is not None:
            try:
                budget.enter()
                inner = [self.branch(i).outline(budget) for i in range(self.n)]
                budget.leave()
            except Unbounded:
                budget.leave()
                inner = "..."
        inner = inner if any(inner or ()) else None
        return ("choices", self.name, self.n, self.k, order, inner)

    def __repr__(self) -> str:
        order = f"{', distinct' if self.distinct else ''}{', sorted' if self.sorted else ''}" if self.k > 1 else ""
        return f"Choices({self.name or self.id!r}, {self.k} of {self.n}{order})"

    def _at(self, position: int) -> str:
        return self.id if self.k == 1 else f"{self.id}[{position}]"

    def _picks(self, dna: DNA) -> list[DNA]:
        return [dna] if self.k == 1 else list(dna.children)

    def _join(self, picks: Sequence[DNA]) -> DNA:
        return picks[0] if self.k == 1 else DNA(None, picks)

    def _first_pick(self, index: int, position: int) -> DNA:
        return DNA(index, self.branch(index, position).first().children)

    def _complete(self, picks: list[DNA]) -> list[DNA]:
        while len(picks) < self.k:
            option = self.options([p.value for p in picks])[0]  # type: ignore[misc]
            picks.append(self._first_pick(option, len(picks)))
        return picks

    def _weights(self, prior: DesignPrior | None) -> list[float] | None:
        return None if prior is None else prior.of_choice(self)

    def _check(self, index: Any, chosen: Sequence[int], position: int) -> None:
        at = self._at(position)
        if isinstance(index, bool) or not isinstance(index, int):
            raise SymbolicError(f"{at}: expected the index of a candidate, got {index!r}")
        if not 0 <= index < self.n:
            raise SymbolicError(f"{at}: expected an index in [0, {self.n - 1}], got {index}")
        if self.k > 1 and self.distinct and index in chosen:
            raise SymbolicError(f"{at}: choices must be distinct, got {[*chosen, index]}")
        if self.k > 1 and self.sorted and chosen and index < chosen[-1]:
            raise SymbolicError(f"{at}: choices must be sorted, got {[*chosen, index]}")
        if index not in self.options(chosen):
            raise SymbolicError(f"{at}: {index} leaves no {self.k} distinct sorted choices, got {[*chosen, index]}")


class Float(Point):
    """A number in [lo, hi], drawn uniformly on a linear or logarithmic scale."""

    def __init__(
        self, id: str, lo: float, hi: float, scale: str = "linear", name: str | None = None, hints: Any = None
    ):
        self.id, self.lo, self.hi, self.scale, self.name, self.hints = id, lo, hi, scale, name, hints

    def first(self) -> DNA:
        return DNA(self.lo)

    def next(self, dna: DNA) -> DNA | None:
        raise SymbolicError(f"{self.id}: a float cannot be enumerated; draw it at random")

    def to_unit(self, value: float) -> float:
        """Where `value` lies between the bounds on the scale, in [0, 1]."""
        if self.scale == "log":
            return math.log(value / self.lo) / math.log(self.hi / self.lo)
        return (value - self.lo) / (self.hi - self.lo)

    def from_unit(self, unit: float) -> float:
        """The inverse of :meth:`to_unit`."""
        value = self.lo * (self.hi / self.lo) ** unit if self.scale == "log" else self.lo + unit * (self.hi - self.lo)
        return min(max(value, self.lo), self.hi)

    def random(self, rng: random.Random, prior: DesignPrior | None = None) -> DNA:
        weights = prior.of_float(self) if prior is not None else None
        if weights is None:
            return DNA(self.from_unit(rng.random()))
        bin = rng.choices(range(len(weights)), weights)[0]
        return DNA(self.from_unit((bin + rng.random()) / len(weights)))

    def log_prob(self, dna: DNA, prior: DesignPrior | None = None) -> float:
        value: float = dna.value  # type: ignore[assignment]
        weights = (prior.of_float(self) if prior is not None else None) or [1.0]
        bin = min(int(self.to_unit(value) * len(weights)), len(weights) - 1)
        mass = weights[bin] * len(weights) / sum(weights)
        width = value * math.log(self.hi / self.lo) if self.scale == "log" else self.hi - self.lo
        return math.log(mass / width) if mass > 0 else -math.inf

    def validate(self, dna: DNA) -> None:
        if dna.children:
            raise SymbolicError(f"{self.id}: a float has nothing below it, got {dna!r}")
        self._check(dna.value)

    def grow(self) -> Generator[Decision, Any, DNA]:
        value = yield Decision(self, self.id, None)
        self._check(value)
        return DNA(float(value))

    def count(self, budget: Budget) -> int | float:
        return math.inf

    def outline(self, budget: Budget) -> Any:
        return ("float", self.name, self.lo, self.hi, self.scale)

    def __repr__(self) -> str:
        return f"Float({self.name or self.id!r} in [{self.lo}, {self.hi}]{' log' if self.scale == 'log' else ''})"

    def _check(self, value: Any) -> None:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not self.lo <= value <= self.hi:
            raise SymbolicError(f"{self.id}: expected a number in [{self.lo}, {self.hi}], got {value!r}")


class Custom(Point):
    """A decision whose values are texts made by functions: of a first value, and of another value from a given one."""

    def __init__(
        self,
        id: str,
        initial: Callable[[], str],
        mutate: Callable[[str, random.Random], str],
        check: Callable[[str], Any] | None = None,
        name: str | None = None,
        hints: Any = None,
    ):
        self.id, self.name, self.hints = id, name, hints
        self._initial, self._mutate, self._check = initial, mutate, check

    def first(self) -> DNA:
        return DNA(self._initial())

    def next(self, dna: DNA) -> DNA | None:
        raise SymbolicError(f"{self.id}: a custom decision cannot be enumerated")

    def random(self, rng: random.Random, prior: DesignPrior | None = None) -> DNA:
        return self.mutate(self.first(), rng)

    def mutate(self, dna: DNA, rng: random.Random) -> DNA:
        """A decision made from `dna` by one mutation."""
        return DNA(self._mutate(dna.value, rng))  # type: ignore[arg-type]

    def log_prob(self, dna: DNA, prior: DesignPrior | None = None) -> float:
        raise SymbolicError(f"{self.id}: the probability of a custom decision is not known")

    def validate(self, dna: DNA) -> None:
        if not isinstance(dna.value, str) or dna.children:
            raise SymbolicError(f"{self.id}: expected a custom decision (a string), got {dna!r}")
        if self._check is not None:
            self._check(dna.value)

    def grow(self) -> Generator[Decision, Any, DNA]:
        value = yield Decision(self, self.id, None)
        self.validate(DNA(value))
        return DNA(value)

    def count(self, budget: Budget) -> int | float:
        return math.inf

    def outline(self, budget: Budget) -> Any:
        return ("custom", self.name, self._initial())

    def __repr__(self) -> str:
        return f"Custom({self.name or self.id!r})"
