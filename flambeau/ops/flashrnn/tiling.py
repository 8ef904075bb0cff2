"""How the CPU kernel is tiled: a constraint system over registers, rows and threads, its answers measured on request.

What ``tune`` finds is kept in a JSON file named after the instruction set and the size of the L2 cache, so that a
cache folder shared by different machines never mixes them up.
"""

import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from flambeau.files import write_bytes
from flambeau.ops import build
from flambeau.ops.bench import interleaved
from flambeau.ops.constrint import solve

SYSTEM = """
rows in [1, 2, 4, 6]; rows * {gates} + {gates} + 1 <= {registers};  # sums, weights and one broadcast in registers
rows <= {batch}; threads <= {threads};
threads <= {pairs} | {meets} == 1;   # panels instead of (head, row) pairs: only if a step is long against a barrier
threads == 1 | {long} == 1           # starting a thread takes as long as some 2 million multiply-adds
"""
Tiling = tuple[int, int]  # rows a block, threads


@functools.cache
def _solve(n: int, **sizes: int) -> list[Tiling]:
    solutions = solve(SYSTEM.format(**sizes), prefer=[("threads", "largest"), ("rows", "largest")], n=n)
    return [(s["rows"], s["threads"]) for s in solutions]


def candidates(batch: int, time: int, heads: int, dim: int, gates: int, threads: int, n: int = 1) -> list[Tiling]:
    """The first ``n`` tilings that fit, most threads and largest blocks of rows first."""
    step = batch * heads * gates * dim * dim
    return _solve(
        n,
        gates=gates,
        registers=32 if build.instruction_set().startswith("avx512") else 16,
        batch=min(batch, 6),
        threads=threads,
        pairs=min(batch * heads, threads),
        meets=int(step > 60_000),
        long=int(step * time > 4_000_000),
    )


def _file() -> Path:
    return build.cache_folder() / "tilings" / f"flashrnn-{build.instruction_set()}-{build.l2_bytes()}.json"


def _tuned(path: Path) -> dict[str, Tiling]:
    if not path.exists():
        return {}
    stored = json.loads(path.read_text())
    return {key: (int(rows), int(threads)) for key, (rows, threads) in stored.items()}


def choose(batch: int, time: int, heads: int, dim: int, gates: int, threads: int) -> Tiling:
    """The tuned tiling of these sizes, or the first that fits."""
    return _choose(build.instruction_set(), batch, time, heads, dim, gates, threads)


@functools.lru_cache(maxsize=4096)
def _choose(isa: str, *sizes: int) -> Tiling:
    return _tuned(_file()).get(_key(sizes)) or candidates(*sizes)[0]


def _key(sizes: Sequence[int]) -> str:
    return ",".join(map(str, sizes))


def tune(
    run: Callable[[Tiling], object], batch: int, time: int, heads: int, dim: int, gates: int, threads: int,
    n: int = 6, repeats: int = 5,
) -> Tiling:  # fmt: skip
    """Time the first ``n`` tilings in turn (wall time, best of ``repeats``), and keep the fastest for these sizes."""
    sizes = batch, time, heads, dim, gates, threads
    fitting = candidates(*sizes, n=n)
    timings = interleaved({str(t): functools.partial(run, t) for t in fitting}, repeats)
    best = min(fitting, key=lambda t: timings[str(t)].wall)
    path = _file()
    tuned = _tuned(path) | {_key(sizes): best}
    write_bytes(path, json.dumps(tuned, indent=1).encode())
    _choose.cache_clear()
    return best
