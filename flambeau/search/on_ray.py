"""Search workers as Ray tasks. One actor on the caller's node owns algorithm and study; the file is local to it."""

from __future__ import annotations

import os
import uuid
from contextlib import nullcontext
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

try:
    import ray
except ImportError as error:
    raise ImportError("backend 'ray' needs Ray: pip install 'flambeau[search]'") from error
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from flambeau.search.algorithm import Algorithm
from flambeau.search.coordinator import MAX_ATTEMPTS
from flambeau.search.evaluate import Evaluate, EvaluationError, evaluate_all
from flambeau.search.sample import as_template, hand_out, prepare, report
from flambeau.search.study import Study


class Office:
    """The actor: a Coordinator that is called by name."""

    def __init__(self, space: Any, algorithm: Algorithm, n: int, study: Study, options: dict[str, Any]) -> None:
        _, self.coordinator = prepare(space, algorithm, n, study, **options)

    def call(self, method: str, *arguments: Any) -> Any:
        return getattr(self.coordinator, method)(*arguments)


class RemoteCoordinator:
    """Has the methods of the Coordinator in the actor."""

    def __init__(self, actor: Any) -> None:
        self.actor = actor

    def __getattr__(self, method: str) -> Any:
        return lambda *arguments: ray.get(self.actor.call.remote(method, *arguments))


def work(actor: Any, space: Any, where: Any, evaluate: Evaluate, owner: str) -> None:
    """The task of a worker."""
    coordinator: Any = RemoteCoordinator(actor)
    evaluate_all(evaluate, hand_out(as_template(space, where), coordinator, owner, nullcontext(lambda: None)))


def ray_search(
    space: Any,
    algorithm: Algorithm,
    evaluate: Evaluate,
    n: int,
    workers: int,
    gpus: float,
    study: Study,
    progress: Any,
    options: dict[str, Any],
) -> None:
    """Run worker tasks until there is nothing left to do. Starts Ray on this machine if it is not running."""
    if not ray.is_initialized():
        ray.init(include_dashboard=False)
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    office = ray.remote(Office).options(num_cpus=0, scheduling_strategy=here)
    actor = office.remote(space, algorithm, n, study, options)
    task = ray.remote(work).options(num_cpus=1, num_gpus=gpus, max_retries=0)
    shared = ray.put(space), options.get("where"), ray.put(evaluate)
    crew: dict[Any, str] = {}

    def hire() -> None:
        owner = f"ray|{uuid.uuid4().hex}"
        crew[task.remote(actor, *shared, owner)] = owner

    deaths, finished = 0, study.finished()
    try:
        for _ in range(workers):
            hire()
        with report(study, n, progress) as update:
            while crew:
                for worker in ray.wait(list(crew), timeout=0.5)[0]:
                    owner = crew.pop(worker)
                    try:
                        ray.get(worker)
                    except ray.exceptions.RayTaskError as error:
                        raise EvaluationError(str(error)) from None
                    except ray.exceptions.RayError as error:
                        RemoteCoordinator(actor).release(owner, True)
                        deaths = deaths + 1 if study.finished() == finished else 1
                        finished = study.finished()
                        if deaths > MAX_ATTEMPTS * workers:
                            raise RuntimeError(f"{deaths} workers in a row died: {error}") from error
                        hire()
                update()
    finally:
        for worker in crew:
            ray.cancel(worker, force=True)
        ray.kill(actor)
