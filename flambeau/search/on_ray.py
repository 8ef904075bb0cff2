"""Search workers as Ray tasks. One actor on the caller's node owns algorithm, study and cache, local files."""

from __future__ import annotations

import copy
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
from flambeau.search.functional.cache import FunctionalCache, Ledger
from flambeau.search.sample import as_template, hand_out, prepare, report
from flambeau.search.study import Study


class Office:
    """The actor: a Coordinator, and the Ledger of a cache, that are called by name."""

    def __init__(
        self, space: Any, algorithm: Algorithm, n: int, study: Study, ledger: Ledger | None, options: dict[str, Any]
    ) -> None:
        _, self.coordinator = prepare(space, algorithm, n, study, **options)
        self.ledger = ledger

    def call(self, part: str, method: str, *arguments: Any, **named: Any) -> Any:
        return getattr(getattr(self, part), method)(*arguments, **named)


class Remote:
    """Has the methods of the "coordinator" or the "ledger" in the actor."""

    def __init__(self, actor: Any, part: str) -> None:
        self.actor, self.part = actor, part

    def __getattr__(self, method: str) -> Any:
        if method.startswith("__"):  # what pickle asks for
            raise AttributeError(method)
        call = self.actor.call.remote
        return lambda *arguments, **named: ray.get(call(self.part, method, *arguments, **named))


def work(actor: Any, space: Any, where: Any, evaluate: Evaluate, cache: FunctionalCache | None, owner: str) -> None:
    """The task of a worker."""
    coordinator: Any = Remote(actor, "coordinator")
    quiet = nullcontext(lambda: None)
    evaluate_all(evaluate, hand_out(as_template(space, where), coordinator, owner, quiet, cache))


def ray_search(
    space: Any,
    algorithm: Algorithm,
    evaluate: Evaluate,
    n: int,
    workers: int,
    gpus: float,
    study: Study,
    cache: FunctionalCache | None,
    progress: Any,
    options: dict[str, Any],
) -> None:
    """Run worker tasks until there is nothing left to do. Starts Ray on this machine if it is not running."""
    if not ray.is_initialized():
        ray.init(include_dashboard=False)
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    office = ray.remote(Office).options(num_cpus=0, scheduling_strategy=here)
    actor = office.remote(space, algorithm, n, study, cache.ledger if cache is not None else None, options)
    if cache is not None:
        cache = copy.copy(cache)
        cache.ledger = Remote(actor, "ledger")  # type: ignore[assignment]
    task = ray.remote(work).options(num_cpus=1, num_gpus=gpus, max_retries=0)
    shared = ray.put(space), options.get("where"), ray.put(evaluate), ray.put(cache)
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
                        Remote(actor, "coordinator").release(owner, True)
                        if cache is not None:
                            cache.ledger.release(owner)
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
