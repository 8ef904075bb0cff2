"""Run an experiment into a run folder: seeded, resumable, every outcome written atomically."""

from __future__ import annotations

import fcntl
import json
import os
import random
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy
import torch

from flambeau.experiment.definition import Experiment
from flambeau.experiment.environment import commit, environment
from flambeau.experiment.run import Run
from flambeau.files import read_json, write_json
from flambeau.symbolic import Node, digest, to_json
from flambeau.symbolic import template as template_of
from flambeau.training.parallel import announced_processes, join_group
from flambeau.training.progress import Progress

CONTRACT = ("paper", "preset", "seed", "seconds", "commit", "environment", "claims", "artifacts")


def run_experiment(
    experiment: Experiment,
    *,
    out: Path | str,
    tree: Node | None = None,
    preset: str = "cpu",
    overrides: Sequence[str] = (),
    seed: int = 0,
    device: str = "cpu",
    threads: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Run `experiment` in the folder `out` and return the result, which is also its ``run.json``.

    An interrupted run (even by SIGKILL) is continued by running the same parameters in the same folder: finished and
    half-finished trainings are taken up from their checkpoints, so the result is that of an uninterrupted run.

    Under ``torchrun`` every process makes this call and runs the experiment: trainings with a parallel plan share the
    work, all else is done by each. The first process's result counts; the others run in ``out/ranks/N``.

    Args:
        experiment: see :func:`flambeau.papers.load`.
        out: the run folder; it may hold an unfinished run of the same parameters, preset and seed.
        tree: the parameters, in place of those of the preset and the overrides; see :meth:`Experiment.tree`.
        overrides: ``path=value`` patches of the parameters.
        device: a torch device; ``"cuda"`` fails here if there is none.
        threads: processor threads of torch, by default at most two of those it has: more of them blur timings.

    Raises:
        ValueError: unknown preset, path, value or device; a parameter left undecided; a folder that holds another run.
    """
    if tree is None:
        tree = experiment.tree(preset, overrides)
    if template_of(tree).space_size != 1:
        raise ValueError("a parameter is still a choice (oneof, floatv, ...): use `flambeau search` to decide it")
    if device != "cpu" and not (device.startswith("cuda") and torch.cuda.is_available()) and device != "mps":
        raise ValueError(
            f"device {device!r} is not available; this machine has cpu"
            + (" and cuda" if torch.cuda.is_available() else "")
        )
    folder = own_folder(Path(out))
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "run.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{folder}: another process is running here") from None
        identity = _identity(experiment, tree, preset, seed)
        _check_folder(folder, identity)
        torch.set_num_threads(threads or min(2, torch.get_num_threads()))
        random.seed(seed)
        numpy.random.seed(seed)
        torch.manual_seed(seed)
        write_json(folder / "config.json", json.loads(json.dumps(to_json(tree))))
        head = identity | {"commit": commit(), "environment": environment(device), "started": time.time()}
        write_json(folder / "run.json", head | {"status": "running", "pid": os.getpid()})
        run = Run(experiment, folder, seed=seed, preset=preset, device=device, progress=progress)
        began = time.perf_counter()
        status: dict[str, Any] = {"status": "finished"}
        try:
            tree.build()(run)
        except BaseException as error:
            interrupted = isinstance(error, (KeyboardInterrupt, SystemExit))
            status = {"status": "interrupted" if interrupted else "failed", "error": f"{type(error).__name__}: {error}"}
            (folder / "error.txt").write_text(traceback.format_exc())
            raise
        finally:
            outcomes = run.close()
            result = (
                head
                | status
                | {
                    "seconds": round(time.perf_counter() - began, 2),
                    "claims": [outcome.to_json() for outcome in outcomes],
                    "notes": run.notes,
                    "tables": run.tables,
                    "figures": [str(path.relative_to(folder)) for path in run.figures.values()],
                    "artifacts": [str(path) for path in _artifacts(folder)],
                }
            )
            write_json(folder / "run.json", result)
    return result


def own_folder(out: Path) -> Path:
    """The folder that this process runs in: `out` of the first one, or one below it for each other."""
    if announced_processes() == 1:
        return out
    join_group()
    shared = [str(out.resolve())]
    torch.distributed.broadcast_object_list(shared, src=0)
    rank = torch.distributed.get_rank()
    return Path(shared[0]) / "ranks" / str(rank) if rank else Path(shared[0])


def contract(result: dict[str, Any]) -> dict[str, Any]:
    """The part of a result that ``flambeau run --json`` promises."""
    return {name: result[name] for name in CONTRACT}


def all_hold(result: dict[str, Any]) -> bool:
    """Whether no measured claim failed; claims that were not judged do not count against a run."""
    return all(claim["holds"] is not False for claim in result["claims"])


def unfinished(runs: Path, experiment: Experiment, tree: Node, preset: str, seed: int) -> Path | None:
    """The newest folder below `runs` that holds an unfinished run of just these parameters, preset and seed."""
    identity = _identity(experiment, tree, preset, seed)
    for folder in sorted(runs.glob("*/run.json"), reverse=True):
        try:
            state = read_json(folder)
        except ValueError:
            continue
        if state.get("status") != "finished" and all(state.get(name) == value for name, value in identity.items()):
            return folder.parent
    return None


def _identity(experiment: Experiment, tree: Node, preset: str, seed: int) -> dict[str, Any]:
    return {"paper": experiment.key, "preset": preset, "seed": seed, "parameters": digest(tree)}


def _check_folder(folder: Path, identity: dict[str, Any]) -> None:
    if not (folder / "run.json").exists():
        return
    state = read_json(folder / "run.json")
    if state.get("status") == "finished":
        raise ValueError(f"{folder}: holds a finished run; choose another folder")
    different = [name for name, value in identity.items() if state.get(name) != value]
    if different:
        raise ValueError(
            f"{folder}: holds an unfinished run with other {' and '.join(different)}; choose another folder"
        )


def _artifacts(folder: Path) -> list[Path]:
    """What the run left for its user: everything but its own bookkeeping."""
    hidden = {"run.lock", "run.json", "progress.jsonl"}
    return sorted(
        p
        for p in folder.rglob("*")
        if p.is_file() and p.name not in hidden and not {"train", "ranks"} & set(p.relative_to(folder).parts[:-1])
    )
