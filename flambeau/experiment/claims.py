"""What a paper claims, and whether a run's measurement bears it out. Free of torch: the command line lists claims."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Claim:
    """One measurable sentence of a paper.

    Args:
        name: identifier, unique within the paper.
        statement: what is compared with what, in words; the baseline is the real alternative.
        paper: the paper's own figure, as printed there, or None if it gives none.
        unit: unit of the measured value, for example ``"x"``, ``"points"`` or ``"bits/dim"``.
        at_least: the claim holds if the value is not below this.
        at_most: the claim holds if the value is not above this.
        needs: what the machine must have for the claim to be measured, for example ``"gpu"``.

    A claim without ``at_least`` and ``at_most`` is reported and never judged.
    """

    name: str
    statement: str
    paper: str | None = None
    unit: str = ""
    at_least: float | None = None
    at_most: float | None = None
    needs: str | None = None

    @property
    def target(self) -> str | None:
        """The threshold in words, for example ``">= 1.5 x"``; None for a claim that is only reported."""
        bounds = [
            f"{sign} {bound:g}" for sign, bound in ((">=", self.at_least), ("<=", self.at_most)) if bound is not None
        ]
        return f"{' and '.join(bounds)} {self.unit}".strip() if bounds else None

    def holds(self, value: float) -> bool | None:
        """Whether `value` meets the threshold; a NaN never does. None for a claim that is only reported."""
        if self.target is None:
            return None
        if math.isnan(value):
            return False
        return (self.at_least is None or value >= self.at_least) and (self.at_most is None or value <= self.at_most)


@dataclass
class Outcome:
    """A claim after a run: the measured figures, and whether it holds (None with a `why` where that cannot be said)."""

    name: str
    statement: str
    paper: str | None
    ours: Any
    baseline: Any
    value: float | None
    unit: str
    target: str | None
    holds: bool | None
    why: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The claim as in the JSON contract of ``flambeau run --json``; non-finite figures become null."""
        return {name: _finite(value) for name, value in asdict(self).items() if not (name == "why" and value is None)}


def judge(claim: Claim, *, ours: Any = None, baseline: Any = None, value: float, judged: bool = True) -> Outcome:
    """The outcome of a measured claim. With ``judged=False`` (a smoke run) the value is shown, nothing is concluded."""
    value = float(value)
    holds = claim.holds(value) if judged else None
    why = None
    if not judged:
        why = "the smoke preset only shows that the experiment runs"
    elif claim.target is None:
        why = "reported, without a threshold"
    return _outcome(claim, ours=_number(ours), baseline=_number(baseline), value=value, holds=holds, why=why)


def unmeasured(claim: Claim, why: str) -> Outcome:
    """The outcome of a claim that this run could not measure, and why."""
    return _outcome(claim, ours=None, baseline=None, value=None, holds=None, why=why)


def _outcome(claim: Claim, **measured: Any) -> Outcome:
    return Outcome(claim.name, claim.statement, claim.paper, unit=claim.unit, target=claim.target, **measured)


def _number(value: Any) -> Any:
    return float(value) if hasattr(value, "__float__") and not isinstance(value, (bool, int, str)) else value


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
