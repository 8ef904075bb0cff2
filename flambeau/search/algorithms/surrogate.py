"""Search by a cheap model of the reward: ridge regression on decision n-grams, or a Gaussian process."""

from __future__ import annotations

import math
import random
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from flambeau.search.algorithm import Algorithm, Reward
from flambeau.search.algorithms.evolution import draw
from flambeau.search.algorithms.mutators import Uniform
from flambeau.symbolic import DNA, Spec
from flambeau.symbolic.spec import Float

Features = Mapping[str, float]


class Surrogate(Protocol):
    """Predicts rewards from features."""

    def fit(self, rows: Sequence[Features], rewards: Sequence[float]) -> None:
        """Forget everything and learn."""

    def score(self, rows: Sequence[Features], best: float) -> np.ndarray:
        """How much each row is worth trying, when `best` is the best reward so far `[rows]`."""


class NGramRidge:
    """Ridge regression on features hashed into `hash_size` columns (stable over processes), rewards centred.

    Args:
        alpha: weight of the penalty; 1e-5 in DeepArchitect's code.
    """

    def __init__(self, hash_size: int = 1024, alpha: float = 1e-5) -> None:
        self.hash_size, self.alpha = hash_size, alpha

    def matrix(self, rows: Sequence[Features]) -> np.ndarray:
        """Hashed features `[rows, hash_size]`."""
        matrix = np.zeros((len(rows), self.hash_size))
        for values, row in zip(matrix, rows):
            for name, value in row.items():
                values[zlib.crc32(name.encode()) % self.hash_size] += value
        return matrix

    def fit(self, rows: Sequence[Features], rewards: Sequence[float]) -> None:
        x, y = self.matrix(rows), np.asarray(rewards, float)
        self.mean = y.mean()
        # The dual form: rows are fewer than columns. w = X' (X X' + alpha)^-1 y
        gram = x @ x.T + self.alpha * np.eye(len(x))
        self.weights = x.T @ np.linalg.solve(gram, y - self.mean)

    def predict(self, rows: Sequence[Features]) -> np.ndarray:
        """Expected rewards `[rows]`."""
        return self.matrix(rows) @ self.weights + self.mean

    def score(self, rows: Sequence[Features], best: float) -> np.ndarray:
        return self.predict(rows)


class GaussianProcess:
    """A Gaussian process with an RBF kernel on features; its score is the expected improvement.

    Length scale and noise maximise the marginal likelihood over a grid; rewards are standardised.
    """

    LENGTHS, NOISES = (0.5, 1.0, 2.0, 4.0, 8.0), (1e-4, 1e-2, 1e-1, 0.5)

    def fit(self, rows: Sequence[Features], rewards: Sequence[float]) -> None:
        y = np.asarray(rewards, float)
        self.mean, self.scale = y.mean(), y.std() or 1.0
        y = (y - self.mean) / self.scale
        self.columns = {name: i for i, name in enumerate(sorted({name for row in rows for name in row}))}
        self.x = self._matrix(rows)
        distances = self._distances(self.x)
        best = -math.inf
        for length in self.LENGTHS:
            kernel = np.exp(-0.5 * distances / length**2)
            for noise in self.NOISES:
                factor = np.linalg.cholesky(kernel + (noise + 1e-8) * np.eye(len(y)))
                whitened = np.linalg.solve(factor, y)
                likelihood = -0.5 * whitened @ whitened - np.log(np.diag(factor)).sum()
                if likelihood > best:
                    best, self.length, self.factor, self.whitened = likelihood, length, factor, whitened

    def predict(self, rows: Sequence[Features]) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of the reward without its noise `[rows]`."""
        cross = np.exp(-0.5 * self._distances(self._matrix(rows), self._extra(rows)) / self.length**2)
        solved = np.linalg.solve(self.factor, cross.T)
        variance = np.maximum(1.0 - (solved**2).sum(0), 1e-12)
        return solved.T @ self.whitened * self.scale + self.mean, np.sqrt(variance) * self.scale

    def score(self, rows: Sequence[Features], best: float) -> np.ndarray:
        mean, deviation = self.predict(rows)
        z = (mean - best) / deviation
        density = np.exp(-0.5 * z**2) / math.sqrt(2 * math.pi)
        below = np.array([0.5 * (1 + math.erf(value / math.sqrt(2))) for value in z])
        return deviation * (z * below + density)

    def _matrix(self, rows: Sequence[Features]) -> np.ndarray:
        matrix = np.zeros((len(rows), len(self.columns)))
        for values, row in zip(matrix, rows):
            for name, value in row.items():
                if name in self.columns:
                    values[self.columns[name]] = value
        return matrix

    def _extra(self, rows: Sequence[Features]) -> np.ndarray:
        """Squared norm of each row's features that no row of the fit has."""
        return np.array([sum(v * v for name, v in row.items() if name not in self.columns) for row in rows])

    def _distances(self, rows: np.ndarray, extra: np.ndarray | None = None) -> np.ndarray:
        squares = (rows**2).sum(1) if extra is None else (rows**2).sum(1) + extra
        return np.maximum(squares[:, None] + (self.x**2).sum(1) - 2 * rows @ self.x.T, 0.0)


class SMBO(Algorithm):
    """Proposes the best of many candidates by a surrogate of the reward (Negrinho and Gordon 2017, section 5.3).

    Candidates are random points and mutations of the best ones so far. Proposals without a reward yet count as the
    mean reward in the fit (constant liar), so that several workers do not try the same.

    Args:
        surrogate: what is fitted to the rewards.
        candidates: how many are compared; half of them mutations.
        epsilon: probability of a random proposal.
        initial: random proposals before the first fit.
        features: from a DNA to its features; by default `DNA.features(ngrams)`, floats scaled to their range.
        prior: a DesignPrior of random candidates and mutations.
    """

    def __init__(
        self,
        surrogate: Surrogate | None = None,
        *,
        candidates: int = 128,
        epsilon: float = 0.1,
        initial: int = 10,
        ngrams: int | None = None,
        features: Callable[[DNA], Features] | None = None,
        prior: Any = None,
    ) -> None:
        if candidates < 1 or initial < 1:
            raise ValueError(f"candidates, initial: expected at least 1, got {candidates}, {initial}")
        if not 0 <= epsilon <= 1:
            raise ValueError(f"epsilon: expected a probability, got {epsilon}")
        self.surrogate: Surrogate = NGramRidge() if surrogate is None else surrogate
        self.candidates, self.epsilon, self.initial, self.ngrams = candidates, epsilon, initial, ngrams
        self.features, self.prior = features, prior

    def setup(self, spec: Spec, seed: int) -> None:
        self.spec, self.seed, self.proposals = spec, seed, 0
        self.observed: list[tuple[DNA, float]] = []
        self.pending: list[DNA] = []
        self._rows: dict[DNA, Features] = {}

    def propose(self) -> DNA:
        rng = random.Random(f"{self.seed}/{self.proposals}")
        self.proposals += 1
        if len(self.observed) < self.initial or rng.random() < self.epsilon:
            dna = draw(self.spec, rng, self.prior)
        else:
            dna = self._best_candidate(rng)
        self.pending.append(dna)
        return dna

    def feedback(self, dna: DNA, reward: Reward) -> None:
        if isinstance(reward, tuple):
            raise TypeError(f"reward: expected one number, got {reward!r}")
        if dna in self.pending:
            self.pending.remove(dna)
        self.observed.append((dna, reward))

    def state_dict(self) -> dict[str, Any]:
        return {
            "proposals": self.proposals,
            "observed": [[dna.to_json(), reward] for dna, reward in self.observed],
            "pending": [dna.to_json() for dna in self.pending],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.proposals = state["proposals"]
        self.observed = [(DNA.from_json(dna), reward) for dna, reward in state["observed"]]
        self.pending = [DNA.from_json(dna) for dna in state["pending"]]

    def _best_candidate(self, rng: random.Random) -> DNA:
        rewards = [reward for _, reward in self.observed]
        mean = sum(rewards) / len(rewards)
        rows = [self._row(dna) for dna, _ in self.observed] + [self._row(dna) for dna in self.pending]
        self.surrogate.fit(rows, rewards + [mean] * len(self.pending))
        known = {dna for dna, _ in self.observed} | set(self.pending)
        best = [dna for dna, _ in sorted(self.observed, key=lambda pair: pair[1], reverse=True)[:10]]
        mutator, found = Uniform(), dict[DNA, None]()
        for i in range(self.candidates):
            if i % 2:
                found[mutator.mutate(best[rng.randrange(len(best))], self.spec, rng, self.prior)] = None
            else:
                found[draw(self.spec, rng, self.prior)] = None
        candidates = [dna for dna in found if dna not in known] or list(found)
        scores = self.surrogate.score([self._row(dna) for dna in candidates], max(rewards))
        return candidates[int(np.argmax(scores))]

    def _row(self, dna: DNA) -> Features:
        if dna not in self._rows:
            self._rows[dna] = self.features(dna) if self.features else decision_features(self.spec, dna, self.ngrams)
        return self._rows[dna]


def decision_features(spec: Spec, dna: DNA, ngrams: int | None = None) -> dict[str, float]:
    """`dna.features(ngrams)` with floats in [0, 1] on their scale, under their names; undue decisions are absent."""
    counts = {name: value for name, value in dna.features(ngrams).items() if "=" in name.rpartition("/")[2]}
    floats = {d.name: d.point.to_unit(v) for d, v in spec.decisions(dna) if isinstance(d.point, Float)}  # type: ignore[arg-type]
    return counts | floats


class BayesianOptimization(SMBO):
    """SMBO with a Gaussian process and expected improvement."""

    def __init__(self, *, candidates: int = 128, initial: int = 10, prior: Any = None) -> None:
        super().__init__(GaussianProcess(), candidates=candidates, epsilon=0.0, initial=initial, prior=prior)
