"""Algorithms that choose programs, the loop and the workers that run them, and the store of what they found."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from flambeau.search.algorithm import Algorithm, Dedup, Feasible, Random, Reward, Sweep
from flambeau.search.early_stopping import ASHA, MedianStopping
from flambeau.search.evaluate import EvaluationError, resume, search
from flambeau.search.functional.cache import FunctionalCache
from flambeau.search.functional.key import functional_hash
from flambeau.search.sample import Feedback, poll_result, sample
from flambeau.search.study import Measurement, RaceConditionError, Study, StudyError, Trial, studies

if TYPE_CHECKING:
    from flambeau.search.algorithms import (
        MCTS,
        NSGA2,
        SMBO,
        BayesianOptimization,
        Evolution,
        HillClimb,
        LSTMController,
        RegularizedEvolution,
        Reinforce,
        SuccessiveHalving,
    )
    from flambeau.search.functional.probe import FunctionProbe, OptimizerProbe, Probe

__all__ = [
    "ASHA",
    "MCTS",
    "NSGA2",
    "SMBO",
    "Algorithm",
    "BayesianOptimization",
    "Dedup",
    "EvaluationError",
    "Evolution",
    "Feasible",
    "Feedback",
    "FunctionProbe",
    "FunctionalCache",
    "HillClimb",
    "LSTMController",
    "Measurement",
    "MedianStopping",
    "OptimizerProbe",
    "Probe",
    "RaceConditionError",
    "Random",
    "RegularizedEvolution",
    "Reinforce",
    "Reward",
    "Study",
    "StudyError",
    "SuccessiveHalving",
    "Sweep",
    "Trial",
    "functional_hash",
    "poll_result",
    "resume",
    "sample",
    "search",
    "studies",
]


def __getattr__(name: str) -> Any:
    """The learning algorithms and the probes, imported when asked for: looking at a study does not need torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "functional.probe" if name.endswith("Probe") else "algorithms"
    return getattr(import_module(f"flambeau.search.{module}"), name)
