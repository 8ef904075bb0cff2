"""Search with workers: `search(space, algorithm, evaluate, n=100, backend="process", workers=4)`.

Every worker runs the loop of `sample` on the one study, so all that is said there holds for each backend: inline in
this process, in processes of this machine, or in Ray tasks.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import tempfile
import threading
import traceback
from collections.abc import Callable, Generator
from contextlib import closing, suppress
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from flambeau.search.algorithm import Algorithm
from flambeau.search.coordinator import MAX_ATTEMPTS
from flambeau.search.sample import Feedback, prepare, report, sample
from flambeau.search.study import RaceConditionError, Study, StudyError
from flambeau.symbolic import SymbolicError, build, from_json, to_json

if TYPE_CHECKING:
    from flambeau.search.functional.cache import FunctionalCache

Evaluate = Callable[[Any, Feedback], Any]


class EvaluationError(RuntimeError):
    """The evaluation raised in a worker; the message is the worker's traceback."""


def search(
    space: Any,
    algorithm: Algorithm,
    evaluate: Evaluate,
    n: int,
    *,
    backend: Literal["inline", "process", "ray"] = "inline",
    workers: int = 1,
    study: Study | str | os.PathLike[str] | None = None,
    name: str | None = None,
    gpus: float = 0.0,
    cache: FunctionalCache | None = None,
    progress: Any = None,
    **options: Any,
) -> Study:
    """Evaluate `n` trials of `space` and return their study.

    `evaluate(value, feedback)` returns the reward, or finishes the trial itself through `feedback` (see `Feedback`) and
    returns None. `options` are those of `sample`: early_stopping, where, deterministic, batch, infeasible, seed, lease.
    A search that was killed, workers or all, continues when it is called again with the same study file, or by
    `resume`.

    backend="process": worker processes are started afresh, not forked; `space`, `algorithm` and `evaluate` reach them
    by pickle. So `evaluate` is a function of a module (or a functools.partial of one), a space with lambdas in it is
    given as a function of a module that makes it, and a script starts its search under `if __name__ == "__main__":`.
    backend="ray" needs the extra `search`; each worker is a Ray task with one CPU and `gpus` GPUs.

    `cache` answers for candidates that compute what another one computed (see `sample`). Of all workers only one
    evaluates a key. Workers of other processes need a cache with a store.

    A worker that dies is replaced, its trial handed out again; a trial that takes down its worker every time is lost.
    An exception in `evaluate` ends the search: as itself inline, as EvaluationError elsewhere; its trial stays
    unfinished, to be handed out when the search is called again.
    """
    if workers < 1 or (backend == "inline" and workers > 1):
        raise ValueError(f"workers: expected {'1 inline' if backend == 'inline' else 'at least 1'}, got {workers}")
    if backend not in ("inline", "process", "ray"):
        raise ValueError(f"backend: expected 'inline', 'process' or 'ray', got {backend!r}")
    if isinstance(study, Study) and study.path is None and backend != "inline":
        raise ValueError(f"study: workers of backend {backend!r} need a study with a path, got one in memory")
    written, cache = cache, build(cache)
    if cache is not None and cache.ledger.path is None and backend != "inline":
        raise ValueError(f"cache: workers of backend {backend!r} need one with a store, got one in memory")
    if study is None and backend != "inline":
        with tempfile.TemporaryDirectory() as folder:
            shared = Study(Path(folder) / "study.db", name or "main")
            arguments = dict(workers=workers, study=shared, gpus=gpus, cache=cache, progress=progress, **options)
            return search(space, algorithm, evaluate, n, backend=backend, **arguments).in_memory()
    study = study if isinstance(study, Study) else Study(study, name or "main")
    prepare(space, algorithm, n, study, **options)  # bad arguments fail here, not in every worker
    if study.path:
        call = {"space": space, "algorithm": algorithm, "evaluate": evaluate, "n": n, "cache": written}
        how = {"backend": backend, "workers": workers, "gpus": gpus, **options}
        with suppress(SymbolicError):  # what has no text can only be resumed by the script that made it
            study.metadata = {**study.metadata, "search": to_json({**call, **how})}
    evaluate = build(evaluate)
    if backend == "inline":
        evaluate_all(evaluate, sample(space, algorithm, n, study=study, cache=cache, progress=progress, **options))
    elif backend == "process":
        process_search(space, algorithm, evaluate, n, workers, study, cache, progress, options)
    else:
        from flambeau.search.on_ray import ray_search

        ray_search(space, algorithm, evaluate, n, workers, gpus, study, cache, progress, options)
    return study


def resume(study: Study, *, trusted: bool = False, n: int | None = None, progress: Any = None) -> Study:
    """Continue a search from its file alone, up to `n` trials if given; one that was ended goes on too.

    That needs a search whose space, algorithm and evaluation can be written down: hyper values and nodes,
    `symbolize(Algorithm)(...)`, a function of a module or `symbolize(function).partial(...)`. Only what is below
    flambeau, torch.nn and torch.optim is imported, unless the file is `trusted`.
    """
    if "search" not in study.metadata:
        hint = "run the script that made it again, with this file as study: it goes on"
        raise StudyError(f"study {study.name!r} was not written with everything needed to resume it; {hint}")
    call = dict(from_json(study.metadata["search"], trusted=trusted))
    study.status = "open"
    return search(**{**call, "study": study, "n": n or call["n"], "progress": progress})


def evaluate_all(evaluate: Evaluate, loop: Generator[tuple[Any, Feedback], None, None]) -> None:
    """What a worker does."""
    with closing(loop):
        for value, feedback in loop:
            try:
                reward = evaluate(value, feedback)
                if reward is not None:
                    feedback(reward)
            except RaceConditionError:
                if feedback.finished:
                    raise
                continue  # taken for dead, and another worker has the trial: its result counts
            if not feedback.finished:
                raise TypeError(f"evaluate: expected a reward for trial {feedback.id} or a call of feedback, got None")


def process_search(
    space: Any,
    algorithm: Algorithm,
    evaluate: Evaluate,
    n: int,
    workers: int,
    study: Study,
    cache: FunctionalCache | None,
    progress: Any,
    options: dict[str, Any],
) -> None:
    """Run worker processes until there is nothing left to do."""
    try:
        job = pickle.dumps((space, algorithm, evaluate, n, study, cache, options))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        message = f"space, algorithm, evaluate and cache: cannot be pickled for worker processes: {error}"
        raise TypeError(message) from error
    context = multiprocessing.get_context("spawn")
    crew: dict[int, tuple[Any, Connection]] = {}

    def hire() -> None:
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=work, args=(job, sender))
        process.start()
        sender.close()
        crew[process.sentinel] = process, receiver

    deaths, finished = 0, study.finished()
    try:
        for _ in range(workers):
            hire()
        with report(study, n, progress) as update:
            while crew:
                for sentinel in wait(list(crew), timeout=0.5):
                    process, receiver = crew.pop(sentinel)  # type: ignore[arg-type]
                    process.join()
                    if process.exitcode == 0:
                        continue
                    if message := last_words(receiver):
                        raise EvaluationError(message)
                    deaths = deaths + 1 if study.finished() == finished else 1
                    finished = study.finished()
                    if deaths > MAX_ATTEMPTS * workers:
                        raise RuntimeError(f"{deaths} workers in a row died (last exit code {process.exitcode})")
                    hire()
                update()
    finally:
        for process, _ in crew.values():
            process.kill()
            process.join()


def work(job: bytes, sender: Connection) -> None:
    """The main function of a worker process."""
    threading.Thread(target=follow_parent, daemon=True).start()
    try:
        space, algorithm, evaluate, n, study, cache, options = pickle.loads(job)  # from our own parent
        evaluate_all(evaluate, sample(space, algorithm, n, study=study, cache=cache, **options))
    except BaseException:
        sender.send_bytes(traceback.format_exc().encode()[-20_000:])  # must fit into the pipe
        raise SystemExit(1) from None


def follow_parent() -> None:
    """End with the process that started this one, however that ends."""
    parent = multiprocessing.parent_process()
    wait([parent.sentinel] if parent else [])
    os._exit(1)


def last_words(receiver: Connection) -> str:
    try:
        return receiver.recv_bytes().decode(errors="replace")
    except EOFError:
        return ""
