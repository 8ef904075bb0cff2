"""Models spread over processes: a plan, and what applies it from outside on PyTorch's distributed engine."""

from flambeau.training.parallel.launch import announced_processes, join_group, run_processes
from flambeau.training.parallel.mesh import Mesh, MeshSpec
from flambeau.training.parallel.plan import ContextSpec, ParallelPlan, Rule

__all__ = [
    "ContextSpec",
    "Mesh",
    "MeshSpec",
    "ParallelPlan",
    "Rule",
    "announced_processes",
    "join_group",
    "run_processes",
]
