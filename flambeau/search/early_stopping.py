"""When to give up on a trial: policies that compare its measurements with those of the others.

A policy is any callable `(trial, others) -> bool`, asked after a measurement; rewards are single numbers, higher is
better. The policies here look at the last measurement of the trial.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median

from flambeau.search.study import Trial


@dataclass(frozen=True)
class MedianStopping:
    """Stop a trial whose best reward so far is below the median of the others' mean rewards up to the same step.

    Golovin et al., "Google Vizier", KDD 2017, section 3.2.2. The others are the done trials that got as far; the first
    `warmup_steps` steps and the first `min_trials` trials are spared.
    """

    warmup_steps: int = 0
    min_trials: int = 5

    def __call__(self, trial: Trial, others: Sequence[Trial]) -> bool:
        step = trial.measurements[-1].step
        if step < self.warmup_steps:
            return False
        curves = [t.measurements for t in others if t.state == "done" and t.measurements]
        means = [fmean(m.reward for m in c if m.step <= step) for c in curves if c[0].step <= step <= c[-1].step]
        return len(means) >= max(1, self.min_trials) and max(m.reward for m in trial.measurements) < median(means)


@dataclass(frozen=True)
class ASHA:
    """Asynchronous successive halving as a stopping rule: only the best 1/`reduction` of a rung's trials go on.

    Li et al., "A System for Massively Parallel Hyperparameter Tuning", MLSys 2020, but trials are stopped rather than
    paused and promoted: a trial is judged once a rung, when it first measures at or beyond step
    `min_steps * reduction**k`, against the rewards that others had there; a rung's first `reduction - 1` trials pass.
    """

    min_steps: int = 1
    reduction: int = 4

    def __post_init__(self) -> None:
        if self.min_steps < 1 or self.reduction < 2:
            raise ValueError(f"expected min_steps >= 1 and reduction >= 2, got {self.min_steps} and {self.reduction}")

    def __call__(self, trial: Trial, others: Sequence[Trial]) -> bool:
        rung, previous = self.min_steps, trial.measurements[-2].step if len(trial.measurements) > 1 else 0
        while rung * self.reduction <= trial.measurements[-1].step:
            rung *= self.reduction
        if not previous < rung <= trial.measurements[-1].step:
            return False
        reached = [next((m.reward for m in t.measurements if m.step >= rung), None) for t in others]
        rewards = sorted([r for r in reached if r is not None] + [trial.measurements[-1].reward], reverse=True)
        kept = len(rewards) // self.reduction
        return kept > 0 and trial.measurements[-1].reward < rewards[kept - 1]
