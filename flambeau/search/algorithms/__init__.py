"""Search algorithms: each sees only a space and DNA, and may be swapped for any other in one line."""

from flambeau.search.algorithms.evolution import Evolution, HillClimb, RegularizedEvolution
from flambeau.search.algorithms.lstm_controller import LSTMController
from flambeau.search.algorithms.mcts import MCTS
from flambeau.search.algorithms.mutators import Uniform
from flambeau.search.algorithms.nsga2 import NSGA2, NondominatedSort, crowding, fronts
from flambeau.search.algorithms.operations import Choice, Context, Identity, Individual, Operation
from flambeau.search.algorithms.reinforce import Reinforce
from flambeau.search.algorithms.selectors import First, Last, Sample, Top
from flambeau.search.algorithms.successive_halving import SuccessiveHalving
from flambeau.search.algorithms.surrogate import SMBO, BayesianOptimization, GaussianProcess, NGramRidge

__all__ = [
    "MCTS",
    "NSGA2",
    "SMBO",
    "BayesianOptimization",
    "Choice",
    "Context",
    "Evolution",
    "First",
    "GaussianProcess",
    "HillClimb",
    "Identity",
    "Individual",
    "LSTMController",
    "Last",
    "NGramRidge",
    "NondominatedSort",
    "Operation",
    "RegularizedEvolution",
    "Reinforce",
    "Sample",
    "SuccessiveHalving",
    "Top",
    "Uniform",
    "crowding",
    "fronts",
]
