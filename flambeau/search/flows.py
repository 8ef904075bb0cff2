"""Search flows: one search over all decisions, one after the other, or one inside the other (Peng et al. 2020, fig. 5).

A flow works on a space and a function from a DNA to its reward, and returns its trials in order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from flambeau.search.algorithm import Algorithm
from flambeau.symbolic import DNA, Spec
from flambeau.symbolic.spec import Point

Evaluate = Callable[[DNA], float]
Where = Callable[[Point], bool]


class Trial(NamedTuple):
    dna: DNA
    reward: float


class Split:
    """The space of the decisions that `where` accepts, the space of the others, and how their DNA make a whole one.

    Only decisions outside every candidate are divided; those inside go with the choice that they depend on.

    Raises:
        ValueError: `where` accepts all decisions or none.
    """

    def __init__(self, spec: Spec, where: Where) -> None:
        self.inside = [bool(where(point)) for point in spec.points]
        if all(self.inside) or not any(self.inside):
            raise ValueError(f"where: it accepts {'all' if any(self.inside) else 'none'} of the {len(spec)} decisions")
        self.chosen = Spec([point for point, inside in zip(spec.points, self.inside) if inside])
        self.rest = Spec([point for point, inside in zip(spec.points, self.inside) if not inside])

    def join(self, chosen: DNA, rest: DNA) -> DNA:
        """The DNA of the whole space."""
        parts = {True: iter(chosen.children), False: iter(rest.children)}
        return DNA(None, [next(parts[inside]) for inside in self.inside])


def joint(spec: Spec, algorithm: Algorithm, evaluate: Evaluate, n: int, seed: int = 0) -> list[Trial]:
    """`n` trials of one search over all decisions."""
    algorithm.setup(spec, seed)
    trials = []
    for _ in range(n):
        dna = algorithm.propose()
        trials.append(Trial(dna, evaluate(dna)))
        algorithm.feedback(*trials[-1])
    return trials


def separate(
    spec: Spec,
    stages: Sequence[tuple[Where, Algorithm]],
    evaluate: Evaluate,
    n: int,
    start: DNA | None = None,
    seed: int = 0,
) -> list[Trial]:
    """Each stage searches its decisions with the others fixed, at the best found before.

    Args:
        stages: which decisions, by which algorithm; the `n` trials are divided equally.
        start: what the decisions are before their stage; by default the first point of the space.
    """
    best, trials = spec.first() if start is None else start, list[Trial]()
    for stage, (where, algorithm) in enumerate(stages):
        split = Split(spec, where)
        rest = DNA(None, [child for child, inside in zip(best.children, split.inside) if not inside])
        count = n * (stage + 1) // len(stages) - len(trials)

        def part(dna: DNA, split: Split = split, rest: DNA = rest) -> float:
            return evaluate(split.join(dna, rest))

        found = joint(split.chosen, algorithm, part, count, seed)
        trials += [Trial(split.join(trial.dna, rest), trial.reward) for trial in found]
        best = max(trials, key=lambda trial: trial.reward).dna
    return trials


def factorized(
    spec: Spec,
    where: Where,
    outer: Algorithm,
    inner: Callable[[], Algorithm],
    evaluate: Evaluate,
    n: int,
    inner_n: int,
    seed: int = 0,
) -> list[Trial]:
    """For each outer proposal (of the decisions that `where` accepts), an inner search over the others.

    The reward of an outer proposal is the best that its inner search found. `n` counts evaluations.
    """
    if not 1 <= inner_n <= n:
        raise ValueError(f"inner_n: expected 1..{n} (n), got {inner_n}")
    split = Split(spec, where)
    outer.setup(split.chosen, seed)
    trials: list[Trial] = []
    while len(trials) < n:
        dna = outer.propose()
        count = min(inner_n, n - len(trials))

        def part(rest: DNA, chosen: DNA = dna) -> float:
            return evaluate(split.join(chosen, rest))

        found = joint(split.rest, inner(), part, count, seed + len(trials))
        trials += [Trial(split.join(dna, trial.dna), trial.reward) for trial in found]
        outer.feedback(dna, max(trial.reward for trial in found))
    return trials
