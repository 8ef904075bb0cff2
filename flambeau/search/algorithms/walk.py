"""A program decided move by move, for algorithms that build a tree over decisions."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any, Literal

from flambeau.symbolic import DNA, Spec
from flambeau.symbolic.spec import Choices, Float, Point

Number = int | float | str
Order = Literal["interleaved", "sequential"]


@dataclass(frozen=True)
class Item:
    """A decision under way: what is left of its options, or of the unit interval of a float."""

    point: Point
    id: str
    chosen: tuple[int, ...] = ()
    options: tuple[int, ...] = ()
    low: float = 0.0
    high: float = 1.0


class Walk:
    """The way from nothing decided to a whole program.

    With `bisect`, an ordered decision (an integer, a float, a choice among ascending numbers or with the hint
    `"ordered"`) is made by halving its range, a float down to `resolution` of it (Negrinho and Gordon 2017, section
    5.2). `order="interleaved"` makes the first halving of every decision due before the second of any; "sequential"
    finishes one decision after the other.
    """

    def __init__(self, spec: Spec, bisect: bool = False, order: Order = "interleaved", resolution: float = 2**-7):
        self.spec, self.bisect, self.order, self.resolution = spec, bisect, order, resolution
        self.decided: dict[str, Number] = {}
        self.open = [self._item(point) for point in spec.points]
        self._skip_forced()

    @property
    def done(self) -> bool:
        return not self.open

    def moves(self, prior: Any = None) -> dict[int, float]:
        """The possible moves and their prior weights (all 1 without a prior); weights of 0 are left out."""
        item = self.open[0]
        point = item.point
        if isinstance(point, Float):
            middle = (item.low + item.high) / 2
            weights = None if prior is None else prior.of_float(point)
            halves = {0: _mass(weights, item.low, middle), 1: _mass(weights, middle, item.high)}
            return {move: weight for move, weight in halves.items() if weight > 0}
        weights = None if prior is None else prior.of_choice(point)
        weight = {i: 1.0 if weights is None else weights[i] for i in item.options}
        if self._halves(point):
            middle = (len(item.options) + 1) // 2
            lower, upper = item.options[:middle], item.options[middle:]
            weight = {0: sum(weight[i] for i in lower), 1: sum(weight[i] for i in upper)}
        return {move: value for move, value in weight.items() if value > 0} or dict.fromkeys(weight, 1.0)

    def take(self, move: int) -> None:
        """Make a move; it may decide the decision, and open those inside the chosen candidate."""
        item = self.open.pop(0)
        if isinstance(item.point, Float):
            middle = (item.low + item.high) / 2
            low, high = (item.low, middle) if move == 0 else (middle, item.high)
            rest = [Item(item.point, item.id, low=low, high=high)]
            decided = high - low <= self.resolution
            if decided:
                self.decided[item.id], rest = item.point.from_unit((low + high) / 2), []
        elif self._halves(item.point):
            middle = (len(item.options) + 1) // 2
            options = item.options[:middle] if move == 0 else item.options[middle:]
            decided = len(options) == 1
            rest = self._decide(item, options[0]) if decided else [Item(item.point, item.id, item.chosen, options)]
        else:
            decided, rest = True, self._decide(item, move)
        self.open = rest + self.open if decided or self.order == "sequential" else self.open + rest
        self._skip_forced()

    def move_towards(self, values: dict[str, Number]) -> int | None:
        """The move that a program with these decisions (by id) makes here; None if it never makes this decision."""
        item = self.open[0]
        value = values.get(item.id)
        if value is None:
            return None
        if isinstance(item.point, Float):
            return int(item.point.to_unit(value) >= (item.low + item.high) / 2)  # type: ignore[arg-type]
        if value not in item.options:
            return None
        if self._halves(item.point):
            return int(item.options.index(value) >= (len(item.options) + 1) // 2)  # type: ignore[arg-type]
        return value  # type: ignore[return-value]

    def dna(self) -> DNA:
        """The program, when everything is decided."""
        return self.spec.from_dict(self.decided)

    def _skip_forced(self) -> None:
        """Decide what has one option only."""
        while self.open and len(self.open[0].options) == 1:
            only = self.open.pop(0)
            self.open = self._decide(only, only.options[0]) + self.open

    def _item(self, point: Point, chosen: tuple[int, ...] = ()) -> Item:
        if isinstance(point, Float):
            if not self.bisect:
                raise ValueError(f"{point.id}: a float has no finite list of options; use bisect=True")
            return Item(point, point.id)
        if not isinstance(point, Choices):
            raise ValueError(f"{point.id}: a custom decision has no list of options; search it by evolution")
        id = point.id if point.k == 1 else f"{point.id}[{len(chosen)}]"
        return Item(point, id, chosen, tuple(point.options(chosen)))

    def _decide(self, item: Item, index: int) -> list[Item]:
        point: Choices = item.point  # type: ignore[assignment]
        self.decided[item.id] = index
        inner = [self._item(below) for below in point.branch(index, len(item.chosen)).points]
        chosen = (*item.chosen, index)
        return inner + [self._item(point, chosen)] if len(chosen) < point.k else inner

    def _halves(self, point: Point) -> bool:
        return self.bisect and is_ordered(point)


def random_moves(walk: Walk, rng: random.Random, prior: Any = None) -> None:
    """Finish a walk at random."""
    while not walk.done:
        moves = walk.moves(prior)
        walk.take(rng.choices(list(moves), list(moves.values()))[0])


def is_ordered(point: Point) -> bool:
    """Whether neighbouring options of a decision are alike: an integer, ascending numbers, or hinted so."""
    if isinstance(point, Float):
        return True
    if not isinstance(point, Choices):
        return False
    if point.hints == "ordered" or point.labels is None:
        return True
    try:
        numbers = [float(label) for label in point.labels]
    except ValueError:
        return False
    return len(numbers) > 1 and numbers == sorted(numbers)


def _mass(weights: list[float] | None, low: float, high: float) -> float:
    """What a histogram over [0, 1] has between two bounds."""
    if weights is None:
        return high - low
    n = len(weights)
    return sum(w * max(0.0, min(high, (i + 1) / n) - max(low, i / n)) * n for i, w in enumerate(weights))
