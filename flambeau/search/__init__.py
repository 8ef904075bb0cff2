"""Algorithms that choose programs, the loop and the workers that run them, and the store of what they found."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from flambeau.search.algorithm import Algorithm, Dedup, Random, Reward, Sweep
from flambeau.search.early_stopping import ASHA, MedianStopping
from flambeau.search.evaluate import EvaluationError, resume, search
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
    "Feedback",
    "HillClimb",
    "LSTMController",
    "Measurement",
    "MedianStopping",
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
    "poll_result",
    "resume",
    "sample",
    "search",
    "studies",
]


def __getattr__(name: str) -> Any:
    """The learning algorithms, imported when asked for: some need torch, which looking at a study does not."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("flambeau.search.algorithms"), name)
