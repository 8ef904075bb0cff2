"""Run a function in several processes that form one group."""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

JOIN_TIMEOUT = timedelta(seconds=300)


def run_processes(
    function: Callable[..., Any], processes: int, *arguments: Any, backend: str = "gloo", timeout: float = 600.0
) -> list[Any]:
    """``[function(*arguments) on rank 0, on rank 1, ...]``, each rank in a process of its own on this machine.

    Under ``torchrun`` with as many processes the group that is there is used: every process calls this, runs the
    function once and gets all results.

    Args:
        function: a function of a module, so that a fresh interpreter can import it.
        arguments: what ``multiprocessing`` can send.
        backend: of ``torch.distributed``.
        timeout: seconds after which the processes are stopped.

    Returns:
        Tensors and plain data (what ``torch.load(weights_only=True)`` reads).

    Raises:
        ValueError: `processes` is below 1, or the group that is there has another size.
        RuntimeError: a process failed; the message holds its traceback. The others are stopped.
        TimeoutError: the processes took longer than `timeout`.
    """
    if processes < 1:
        raise ValueError(f"processes must be at least 1, got {processes}")
    if dist.is_initialized() or announced_processes() > 1:
        join_group(backend)
        if dist.get_world_size() != processes:
            raise ValueError(f"{processes} processes are needed, this group has {dist.get_world_size()}")
        results: list[Any] = [None] * processes
        dist.all_gather_object(results, function(*arguments))
        return results
    with tempfile.TemporaryDirectory(prefix="flambeau-") as folder:
        context = multiprocessing.get_context("spawn")
        workers = [
            context.Process(
                target=_worker,
                args=(rank, processes, backend, folder, torch.get_num_threads(), function, arguments),
                daemon=True,
            )
            for rank in range(processes)
        ]
        for worker in workers:
            worker.start()
        try:
            _join(workers, Path(folder), timeout)
            return [torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in range(processes)]
        finally:
            for worker in workers:
                worker.kill()
                worker.join()


def announced_processes() -> int:
    """Processes of the group that ``torchrun`` has started this one for; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def join_group(backend: str | None = None) -> None:
    """Join the process group that ``torchrun`` announces in the environment, unless this process is in one.

    Raises:
        RuntimeError: the environment names no group, or not all of its processes came within five minutes.
    """
    if dist.is_initialized():
        return
    if "RANK" not in os.environ:
        raise RuntimeError(
            "there is no process group: start the program with torchrun, "
            "for example torchrun --nproc_per_node 2 -m flambeau run KEY ..."
        )
    if backend is None:
        backend = "nccl" if torch.cuda.is_available() else "gloo"
    if backend == "nccl":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    if os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"]:
        _talk_over_loopback()
    dist.init_process_group(backend, timeout=JOIN_TIMEOUT)


def _talk_over_loopback() -> None:
    """All processes are on this machine; gloo would look for the host's name, which may not resolve."""
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")


def _join(workers: list[Any], folder: Path, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    running = dict(enumerate(workers))
    while running:
        wait([worker.sentinel for worker in running.values()], timeout=max(0.0, deadline - time.monotonic()))
        for rank, worker in list(running.items()):
            # A result that was written counts, whatever became of the process afterwards: gloo's threads
            # occasionally abort an interpreter that is already leaving.
            if not worker.is_alive():
                if (folder / f"{rank}.error").exists():
                    raise RuntimeError(f"process {rank} failed:\n{(folder / f'{rank}.error').read_text()}")
                if not (folder / f"{rank}.pt").exists():
                    raise RuntimeError(f"process {rank} ended with exit code {worker.exitcode} and no result")
                del running[rank]
        if running and time.monotonic() > deadline:
            raise TimeoutError(f"processes {sorted(running)} still ran after {timeout:g} s and were stopped")


def _worker(
    rank: int,
    processes: int,
    backend: str,
    folder: str,
    threads: int,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    _talk_over_loopback()
    torch.set_num_threads(max(1, threads // processes))
    target = Path(folder) / f"{rank}.pt"
    try:
        if backend == "nccl":
            torch.cuda.set_device(rank)
        store = dist.FileStore(str(Path(folder) / "store"), processes)
        dist.init_process_group(backend, store=store, rank=rank, world_size=processes, timeout=JOIN_TIMEOUT)
        torch.save(function(*arguments), target.with_suffix(".tmp"))
        dist.barrier()
        os.replace(target.with_suffix(".tmp"), target)
    except BaseException:
        target.with_suffix(".error").write_text(traceback.format_exc())
    sys.stdout.flush()
    sys.stderr.flush()
    # Leaving the interpreter normally, gloo's threads sometimes abort it.
    os._exit(0)
