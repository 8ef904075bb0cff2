"""A run of a paper's experiment: its claims, parameters, folder and result."""

from typing import TYPE_CHECKING, Any

from flambeau.experiment.claims import Claim, Outcome
from flambeau.experiment.definition import Experiment, experiment

if TYPE_CHECKING:
    from flambeau.experiment.run import Run
    from flambeau.experiment.runner import run_experiment

__all__ = ["Claim", "Experiment", "Outcome", "Run", "experiment", "run_experiment"]


def __getattr__(name: str) -> Any:
    """`Run` and `run_experiment` need torch, the declarations do not: import them when they are asked for."""
    if name == "Run":
        from flambeau.experiment.run import Run

        return Run
    if name == "run_experiment":
        from flambeau.experiment.runner import run_experiment

        return run_experiment
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
