"""Timing that survives a busy machine: interleaved runs, the best of several, CPU time beside wall time."""

import importlib.util
import pkgutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

import flambeau.ops
from flambeau.ops import build


@dataclass(frozen=True)
class Timing:
    """Seconds of the fastest run: CPU time over all threads, and wall time."""

    cpu: float
    wall: float


@dataclass(frozen=True)
class Case:
    """One thing to time in several ways.

    Args:
        name: shown in the table.
        functions: label -> call without arguments; the first is ours, the others what it is compared with.
        flops: floating-point operations the task needs at least.
        bytes: bytes it has to move at least.
    """

    name: str
    functions: Mapping[str, Callable[[], object]]
    flops: float
    bytes: float


@contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """Give PyTorch and the kernels of this package so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def interleaved(
    functions: Mapping[str, Callable[[], object]], repeats: int = 7, synchronize: Callable[[], object] = lambda: None
) -> dict[str, Timing]:
    """Time every function ``repeats`` times in turn, after one unmeasured call each, and keep each one's best.

    Taking turns spreads a disturbance over all of them; the best run is the least disturbed one.

    Args:
        synchronize: waits for the device (``torch.cuda.synchronize``).
    """
    if repeats < 1:
        raise ValueError(f"repeats is {repeats}; expected at least 1")
    best = {name: Timing(float("inf"), float("inf")) for name in functions}
    for turn in range(repeats + 1):
        for name, function in functions.items():
            synchronize()
            wall, cpu = time.perf_counter(), time.process_time()
            function()
            synchronize()
            cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
            if turn:
                best[name] = Timing(min(best[name].cpu, cpu), min(best[name].wall, wall))
    return best


def _roof() -> Case:
    a, b = torch.randn(512, 512), torch.randn(512, 512)
    source, target = torch.empty(1 << 22), torch.empty(1 << 22)
    return Case(
        "roof", {"product": lambda: a @ b, "copy": lambda: target.copy_(source)}, 2 * 512**3, 8 * source.numel()
    )


def bench(names: Sequence[str] = (), *, repeats: int = 7, threads: int = 1) -> list[dict[str, str | int | float]]:
    """Time the operators called ``names`` (all that have a ``benchmark`` module when empty) on this CPU.

    Returns:
        One row a case and way of computing it: milliseconds of CPU and wall time, how many times slower than our kernel
        it is (``ratio``), and ``floor_ms``: what this machine would need if it did nothing but the necessary operations
        at the rate of a 512 x 512 matrix product, or the necessary transfers at the rate of a large copy, whichever is
        more. Both rates are measured in the same interleaved run.
    """
    known = [m.name for m in pkgutil.iter_modules(flambeau.ops.__path__) if m.ispkg and _has_benchmark(m.name)]
    for name in names:
        if name not in known:
            raise ValueError(f"no benchmark for {name!r}; there are {', '.join(known)}")
    rows: list[dict[str, str | int | float]] = []
    with torch_threads(threads):
        for name in names or known:
            for case in importlib.import_module(f"flambeau.ops.{name}.benchmark").cases():
                roof = _roof()
                timings = interleaved({**case.functions, **roof.functions}, repeats)
                per_flop, per_byte = timings["product"].cpu / roof.flops, timings["copy"].cpu / roof.bytes
                floor = max(case.flops * per_flop, case.bytes * per_byte)
                ours = timings[next(iter(case.functions))]
                for label in case.functions:
                    rows.append(
                        {
                            "op": name,
                            "case": case.name,
                            "computed by": label,
                            "cpu_ms": 1e3 * timings[label].cpu,
                            "wall_ms": 1e3 * timings[label].wall,
                            "ratio": timings[label].cpu / ours.cpu,
                            "floor_ms": 1e3 * floor,
                            "isa": build.instruction_set(),
                            "threads": threads,
                        }
                    )
    return rows


def _has_benchmark(name: str) -> bool:
    return importlib.util.find_spec(f"flambeau.ops.{name}.benchmark") is not None
