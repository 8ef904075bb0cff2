"""How good methods are with few labels: k cases of each class, the same nested draws for every method."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from jaxtyping import Float, Int64
from torch import Tensor

from flambeau.data.subsets import per_class
from flambeau.experiment.representation.evaluation import accuracy, linear_probe

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Score = Callable[[Tensor, int], float]


@dataclass(frozen=True)
class FewLabels:
    """Scores of methods by labels a class.

    Attributes:
        scores: ``scores[method][count]``, one score for each seed.
        seeds: of the draws, in the order of the scores.
    """

    scores: dict[str, dict[int, list[float]]]
    seeds: tuple[int, ...]

    def mean(self, method: str, count: int) -> float:
        """Over the draws."""
        return fmean(self.scores[method][count])

    def gain(self, method: str, baseline: str, count: int) -> tuple[float, float]:
        """Mean and standard error, over the draws, of `method` minus `baseline` on the same cases.

        The standard error of a single draw is NaN.
        """
        pairs = zip(self.scores[method][count], self.scores[baseline][count], strict=True)
        differences = [ours - theirs for ours, theirs in pairs]
        return fmean(differences), _spread(differences) / len(differences) ** 0.5

    def rows(self) -> list[dict[str, Any]]:
        """For ``run.table``: method, labels a class, mean and standard deviation over the draws."""
        return [
            {"method": method, "labels a class": count, "mean": fmean(values), "deviation": _spread(values)}
            for method, by_count in self.scores.items()
            for count, values in by_count.items()
        ]


def few_labels(
    methods: Mapping[str, Score],
    labels: Int64[Tensor, " n"],
    counts: Sequence[int] = (1, 5, 20),
    seeds: Sequence[int] = range(5),
) -> FewLabels:
    """Score every method on `counts` labelled cases a class, drawn once for each of `seeds`.

    The cases of a smaller count are among those of a larger one with the same seed, and all methods get the same, so
    that differences between methods and between counts are not those between draws.

    Args:
        methods: ``score(rows, seed)`` of each: trains on the cases `rows` (indices into `labels`) and tests on others.
        labels: class of every case that may be drawn.
        counts: labelled cases of each class.
        seeds: one draw each; also passed to the methods.

    Raises:
        ValueError: no method, count or seed, or a class with fewer cases than a count.
    """
    for name, values in (("methods", methods), ("counts", counts), ("seeds", seeds)):
        if not len(values):
            raise ValueError(f"{name}: at least one is needed")
    draws = {(count, seed): per_class(labels, count, seed) for count in counts for seed in seeds}
    scores = {
        method: {count: [score(draws[count, seed], seed) for seed in seeds] for count in counts}
        for method, score in methods.items()
    }
    return FewLabels(scores, tuple(seeds))


def probe_score(
    train_x: Float[Tensor, "n dim"],
    train_y: Int64[Tensor, " n"],
    test_x: Float[Tensor, "m dim"],
    test_y: Int64[Tensor, " m"],
) -> Score:
    """A method of :func:`few_labels`: accuracy of a linear probe on fixed features."""

    def score(rows: Tensor, seed: int) -> float:
        return accuracy(linear_probe(train_x[rows], train_y[rows], test_x, seed), test_y)

    return score


def draw_few_labels(result: FewLabels, metric: str = "accuracy") -> Figure:
    """Mean score by labels a class, a line for each method, with its standard deviation over the draws."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5, 3.5))
    axis = figure.subplots()
    counts: list[int] = []
    for method, by_count in result.scores.items():
        counts = sorted(by_count)
        spread = [_spread(by_count[count]) if len(result.seeds) > 1 else 0.0 for count in counts]
        axis.errorbar(
            counts, [result.mean(method, count) for count in counts], spread, marker="o", capsize=2, label=method
        )
    axis.set_xscale("log")
    axis.set_xticks(counts, [str(count) for count in counts])
    axis.minorticks_off()
    axis.set_xlabel("labels a class")
    axis.set_ylabel(metric)
    axis.legend(fontsize=8)
    figure.tight_layout()
    return figure


def _spread(values: Sequence[float]) -> float:
    return stdev(values) if len(values) > 1 else float("nan")
