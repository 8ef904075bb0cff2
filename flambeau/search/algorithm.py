"""What a search algorithm is, and the simple ones: random search, enumeration, de-duplication, rejection."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

from flambeau.symbolic import DNA, Spec

Reward = float | tuple[float, ...]


@runtime_checkable
class Algorithm(Protocol):
    """Proposes points of a space (DNA) and learns from their rewards; higher is better.

    The runner calls `setup` once, then `propose` and `feedback` in any interleaving: several proposals may be
    outstanding, feedback may come out of order, and may concern a DNA that this object did not propose. A trial that
    is skipped gets no feedback. `propose` raises StopIteration when there is nothing left to propose.

    State: `setup` followed by `load_state_dict(other.state_dict())` makes the next proposals equal to those of
    `other`. A state is JSON (dict, list, str, int, finite float, bool, None), and covers the random generator.

    `multi_objective`: rewards are tuples, one number an objective. `needs_feedback`: False if proposals do not depend
    on rewards. An implementation may subclass this class to inherit the defaults, or just have the same methods.
    """

    multi_objective: bool = False
    needs_feedback: bool = True

    def setup(self, spec: Spec, seed: int) -> None:
        """Start afresh on the space `spec`."""

    def propose(self) -> DNA:
        """The next point to try. Raises StopIteration when there is none."""
        raise NotImplementedError

    def feedback(self, dna: DNA, reward: Reward) -> None:
        """Learn that `dna` earned `reward`."""
        return

    def recover(self, history: Sequence[tuple[DNA, Reward | None]]) -> None:
        """Continue, without a stored state, after the trials of `history` in their order; None: no reward (yet).

        Replays them: one proposal (which moves the random generator on) and one feedback a trial.
        """
        for dna, reward in history:
            self.propose()
            if reward is not None:
                self.feedback(dna, reward)

    def state_dict(self) -> dict[str, Any]:
        """Everything that later proposals depend on, as JSON."""
        raise NotImplementedError

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a state, after `setup`."""
        raise NotImplementedError


class Random(Algorithm):
    """Random search: independent draws from the space, uniform or from `prior` (a DesignPrior).

    Proposal i depends only on (seed, i), so the state is a counter.
    """

    needs_feedback = False

    def __init__(self, prior: Any = None) -> None:
        self.prior = prior

    def setup(self, spec: Spec, seed: int) -> None:
        self.spec, self.seed, self.count = spec, seed, 0

    def propose(self) -> DNA:
        rng = random.Random(f"{self.seed}/{self.count}")
        self.count += 1
        return self.spec.random(rng) if self.prior is None else self.spec.random(rng, self.prior)

    def recover(self, history: Sequence[tuple[DNA, Reward | None]]) -> None:
        self.count += len(history)

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count = state["count"]


class Sweep(Algorithm):
    """Every point of a finite space once, in the order of `Spec.iter`; then StopIteration."""

    needs_feedback = False

    def setup(self, spec: Spec, seed: int) -> None:
        self.spec = spec
        self.next_dna: DNA | None = spec.first()

    def propose(self) -> DNA:
        dna = self.next_dna
        if dna is None:
            raise StopIteration("every point of the space has been proposed")
        self.next_dna = self.spec.next(dna)
        return dna

    def state_dict(self) -> dict[str, Any]:
        return {"next": None if self.next_dna is None else self.next_dna.to_json()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.next_dna = None if state["next"] is None else DNA.from_json(state["next"])


class Dedup(Algorithm):
    """`algorithm` without its repetitions: a DNA that was proposed before is dropped and another asked for.

    After `attempts` repetitions in a row the space counts as exhausted (StopIteration).
    """

    def __init__(self, algorithm: Algorithm, attempts: int = 100) -> None:
        if attempts < 1:
            raise ValueError(f"attempts: expected at least 1, got {attempts}")
        self.algorithm, self.attempts = algorithm, attempts
        self.multi_objective = algorithm.multi_objective
        self.needs_feedback = algorithm.needs_feedback

    def setup(self, spec: Spec, seed: int) -> None:
        self.algorithm.setup(spec, seed)
        self.seen: dict[DNA, None] = {}

    def propose(self) -> DNA:
        for _ in range(self.attempts):
            dna = self.algorithm.propose()
            if dna not in self.seen:
                self.seen[dna] = None
                return dna
        raise StopIteration(f"{self.attempts} proposals in a row were repetitions")

    def feedback(self, dna: DNA, reward: Reward) -> None:
        self.seen[dna] = None
        self.algorithm.feedback(dna, reward)

    def state_dict(self) -> dict[str, Any]:
        return {"algorithm": self.algorithm.state_dict(), "seen": [dna.to_json() for dna in self.seen]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.algorithm.load_state_dict(state["algorithm"])
        self.seen = {DNA.from_json(dna): None for dna in state["seen"]}


class Feasible(Algorithm):
    """`algorithm` without the points that `accept` refuses: another is asked for, and nothing is fed back for them.

    After `attempts` refusals in a row the space counts as exhausted (StopIteration).
    """

    def __init__(self, algorithm: Algorithm, accept: Callable[[DNA], bool], attempts: int = 10_000) -> None:
        if attempts < 1:
            raise ValueError(f"attempts: expected at least 1, got {attempts}")
        self.algorithm, self.accept, self.attempts = algorithm, accept, attempts
        self.multi_objective = algorithm.multi_objective
        self.needs_feedback = algorithm.needs_feedback

    def setup(self, spec: Spec, seed: int) -> None:
        self.algorithm.setup(spec, seed)

    def propose(self) -> DNA:
        for _ in range(self.attempts):
            if self.accept(dna := self.algorithm.propose()):
                return dna
        raise StopIteration(f"{self.attempts} proposals in a row were refused")

    def feedback(self, dna: DNA, reward: Reward) -> None:
        self.algorithm.feedback(dna, reward)

    def state_dict(self) -> dict[str, Any]:
        return self.algorithm.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.algorithm.load_state_dict(state)
