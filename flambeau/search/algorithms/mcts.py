"""Monte Carlo tree search over decisions (Negrinho and Gordon 2017, "DeepArchitect", section 5)."""

from __future__ import annotations

import math
import random
from typing import Any

from flambeau.search.algorithm import Algorithm, Reward
from flambeau.search.algorithms.walk import Order, Walk, random_moves
from flambeau.symbolic import DNA, Spec

VISITS, TOTAL, PENDING = 0, 1, 2


class MCTS(Algorithm):
    """Descends by upper confidence bounds, expands one node a proposal, finishes at random.

    The score of a move is `mean + bonus * range * sqrt(2 ln N / n)`, where the range of the rewards seen makes the
    bonus independent of their scale; moves not tried yet come first, in random order. A proposal without a reward yet
    counts as a visit with the worst reward seen (virtual loss), so several workers spread out, and points that are
    skipped as infeasible are left.

    Args:
        bonus: weight of exploration.
        bisect, order, resolution: how ordered decisions are made, see `Walk`. Floats need `bisect`.
        prior: a DesignPrior for untried moves and random completions.
    """

    def __init__(
        self,
        bonus: float = 0.3,
        bisect: bool = False,
        order: Order = "interleaved",
        resolution: float = 2**-7,
        prior: Any = None,
    ) -> None:
        if bonus < 0:
            raise ValueError(f"bonus: expected a number >= 0, got {bonus}")
        if order not in ("interleaved", "sequential"):
            raise ValueError(f"order: expected 'interleaved' or 'sequential', got {order!r}")
        self.bonus, self.bisect, self.order, self.resolution, self.prior = bonus, bisect, order, resolution, prior

    def setup(self, spec: Spec, seed: int) -> None:
        self.spec, self.seed, self.proposals = spec, seed, 0
        self._walk()  # refuses decisions that this search cannot make
        self.nodes: dict[tuple[int, ...], list[float]] = {(): [0, 0.0, 0]}
        self.expanded: dict[tuple[int, ...], None] = {}
        self.pending: dict[DNA, list[int]] = {}  # lengths of the paths that carry a virtual loss
        self.low, self.high = math.inf, -math.inf

    def propose(self) -> DNA:
        rng = random.Random(f"{self.seed}/{self.proposals}")
        self.proposals += 1
        walk, path = self._walk(), list[tuple[int, ...]]([()])
        while not walk.done:
            at = path[-1]
            known = at in self.expanded
            self.expanded[at] = None
            move = self._choose(walk, at, rng) if known else self._draw(walk.moves(self.prior), rng)
            walk.take(move)
            path.append((*at, move))
            if not known:
                break
        random_moves(walk, rng, self.prior)
        dna = walk.dna()
        for node in path:
            self.nodes.setdefault(node, [0, 0.0, 0])[PENDING] += 1
        self.pending.setdefault(dna, []).append(len(path))
        return dna

    def feedback(self, dna: DNA, reward: Reward) -> None:
        if isinstance(reward, tuple):
            raise TypeError(f"reward: expected one number, got {reward!r}")
        lengths = self.pending.get(dna, [])
        length = lengths.pop(0) if lengths else None
        if not lengths:
            self.pending.pop(dna, None)
        for node in self._path(dna, length):
            self.nodes[node][VISITS] += 1
            self.nodes[node][TOTAL] += reward
            if length is not None:
                self.nodes[node][PENDING] -= 1
        self.low, self.high = min(self.low, reward), max(self.high, reward)

    def state_dict(self) -> dict[str, Any]:
        return {
            "proposals": self.proposals,
            "nodes": [[list(path), *values] for path, values in self.nodes.items()],
            "expanded": [list(path) for path in self.expanded],
            "pending": [[dna.to_json(), lengths] for dna, lengths in self.pending.items()],
            "range": [self.low, self.high] if self.low <= self.high else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.proposals = state["proposals"]
        self.nodes = {tuple(path): values for path, *values in state["nodes"]}
        self.expanded = {tuple(path): None for path in state["expanded"]}
        self.pending = {DNA.from_json(dna): list(lengths) for dna, lengths in state["pending"]}
        self.low, self.high = state["range"] or (math.inf, -math.inf)

    def _walk(self) -> Walk:
        return Walk(self.spec, self.bisect, self.order, self.resolution)  # type: ignore[arg-type]

    def _choose(self, walk: Walk, at: tuple[int, ...], rng: random.Random) -> int:
        moves = walk.moves(self.prior)
        counts = {move: self._count((*at, move)) for move in moves}
        if new := {move: weight for move, weight in moves.items() if counts[move] == 0}:
            return self._draw(new, rng)
        total, spread = math.log(sum(counts.values())), max(self.high - self.low, 0.0)
        scores = {
            move: self._mean((*at, move)) + self.bonus * spread * math.sqrt(2 * total / counts[move]) for move in moves
        }
        best = max(scores.values())
        return rng.choice([move for move, score in scores.items() if score == best])

    def _count(self, node: tuple[int, ...]) -> float:
        visits, _, pending = self.nodes.get(node, (0, 0.0, 0))
        return visits + pending

    def _mean(self, node: tuple[int, ...]) -> float:
        visits, total, pending = self.nodes[node]
        return (total + pending * (self.low if pending and self.low <= self.high else 0.0)) / (visits + pending)

    def _path(self, dna: DNA, length: int | None) -> list[tuple[int, ...]]:
        """The nodes of the tree on the way to `dna`, at most `length`."""
        values = {decision.id: value for decision, value in self.spec.decisions(dna)}
        walk, path = self._walk(), list[tuple[int, ...]]([()])
        while not walk.done and (length is None or len(path) < length):
            move = walk.move_towards(values)
            if move is None or (*path[-1], move) not in self.nodes:
                break
            walk.take(move)
            path.append((*path[-1], move))
        return path

    @staticmethod
    def _draw(moves: dict[int, float], rng: random.Random) -> int:
        return rng.choices(list(moves), list(moves.values()))[0]
