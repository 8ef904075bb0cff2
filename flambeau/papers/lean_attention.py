"""Lean attention: decode attention as equal ranges of key tiles, timed against one worker a head, splits and SDPA.

A generation step reads every key and value once, so its floor is the memory bandwidth; what a schedule can lose is
workers without work. Two threads can gain at most 2x over one, a GPU with a hundred multiprocessors much more.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from matplotlib.figure import Figure

from flambeau.experiment import Claim, experiment
from flambeau.experiment.tokens.generation_speed import time_generation
from flambeau.ops.bench import Case, Timing, interleaved, torch_threads
from flambeau.ops.lean_attention import lean_decode
from flambeau.ops.lean_attention.benchmark import SHAPES, after_copies, cases, copy_call, inputs

# fmt: off
CLAIMS = [
    Claim("one_head", "over one worker a head: one sequence of 65536 keys, one head of 64, two threads",
          paper="2.6x on average over FlashAttention-2, up to 8.33x (A100)", unit="x", at_least=1.5),
    Claim("one_head_sdpa", "the same over torch SDPA", unit="x", at_least=1.5),
    Claim("ragged", "over one worker a head: 4 sequences of 16384, 512, 512 and 512 keys, 2 heads", unit="x",
          at_least=1.4),
    Claim("ragged_sdpa", "the same over padded and masked torch SDPA", unit="x", at_least=5.0),
    Claim("three_heads", "over one worker a head: 16384 keys, 3 heads, two threads", unit="x", at_least=1.15),
    Claim("balanced", "time over that of one worker a head where that is balanced: 2 sequences of 8192 keys, 4 heads",
          unit="x", at_most=1.15),
    Claim("multi_query", "time of one call with 8 query heads over 8 calls with one, 65536 keys", unit="x",
          at_most=0.6),
    Claim("error", "largest difference from the float64 result over all cases", at_most=1e-5),
    Claim("bandwidth", "keys and values read per second over the rate of a copy, one sequence of 65536 keys"),
    Claim("generation", "tokens per second of model=hf:... over the same model with torch SDPA", unit="x"),
    Claim("gpu_floor", "share of 4.8 TB/s: bfloat16, 8 key/value heads of 128, 262144 keys (1.07 GB)",
          at_least=0.6, needs="gpu"),
    Claim("gpu_per_head", "over one program a head, the same", paper="2.6x on average, up to 8.33x (A100)", unit="x",
          at_least=5.0, needs="gpu"),
    Claim("gpu_split", "over the best fixed split, the same", paper="1.73x on average over FlashDecoding", unit="x",
          at_least=0.95, needs="gpu"),
    Claim("gpu_ragged", "over the best fixed split: one sequence of 131072 keys and 15 of 2048", paper="up to 2.18x",
          unit="x", at_least=1.15, needs="gpu"),
    Claim("gpu_sdpa", "over torch SDPA, 262144 keys", unit="x", needs="gpu"),
    Claim("gpu_short", "microseconds of a captured call over 512 keys", unit="us", at_most=8.0, needs="gpu"),
]
PRESETS = {
    "smoke": {"shapes": [[[700], 1, 1], [[300, 20], 2, 2]], "repeats": 2, "megabytes": 1},
    "paper": {
        "shapes": [[[1024], 12, 1], [[32768], 12, 1], [[524288], 12, 1], [[262144], 8, 4],
                   [[65536, 2048, 2048, 2048, 2048, 2048, 2048, 2048], 8, 4], [[8192, 8192, 8192, 8192], 32, 1]],
        "dim": 128, "dtype": "bfloat16",
    },
}
# fmt: on
NAMES = {"one_head": 0, "ragged": 1, "three_heads": 2}
SPLITS = (4, 8, 16, 32, 64)


@experiment("lean_attention", claims=CLAIMS, presets=PRESETS)
def run(
    run: Any,
    *,
    shapes: list[list[Any]] = [list(s) for s in SHAPES],  # noqa: B006
    dim: int = 64,
    dtype: str = "float32",
    repeats: int = 30,
    threads: int = 2,
    megabytes: int = 128,
    model: str | None = None,
    context: int = 2048,
    new_tokens: int = 32,
) -> None:
    """Time decode attention by schedule, interleaved, for one long sequence, a ragged batch, few heads and MQA.

    shapes: what is timed, as [lengths of the rows, key/value heads, query heads of each]; put your own here.
    dim: size of a head.
    dtype: of queries, keys and values: "float32", "bfloat16" or "float16".
    repeats: interleaved turns, of which each way keeps its best.
    threads: of the kernels and of torch.
    megabytes: size of the copy that gives the memory bandwidth and empties the caches before each call.
    model: "hf:FOLDER" or "hf:NAME", a transformers causal LM to time with lean attention and with SDPA.
    context: tokens of its prompts; the longest of a ragged batch of four.
    new_tokens: tokens it generates.
    """
    if dtype not in ("float32", "bfloat16", "float16"):
        raise ValueError(f"dtype is {dtype!r}; expected float32, bfloat16 or float16")
    timed = [(list(lengths), kv_heads, group) for lengths, kv_heads, group in shapes]
    standard = timed == [(list(a), b, c) for a, b, c in SHAPES] and dim == 64 and dtype == "float32" and threads == 2
    found = cases(timed, dim, getattr(torch, dtype), run.device, seed=run.seed)
    rows, timings = [], []
    wait = torch.cuda.synchronize if run.device.type == "cuda" else lambda: None
    with torch_threads(threads), run.progress("timing", len(found)) as task:
        for case in found:
            copy, copied = copy_call(run.device, megabytes)
            measured = interleaved(after_copies(case, copy), repeats, wait)
            timings.append(measured)
            for label in case.functions:
                rate = case.bytes / measured[label].wall
                share = 100 * rate * measured["copy"].wall / copied
                rows.append({"case": case.name, "computed by": label, "ms": 1e3 * measured[label].wall,
                             "GB/s": rate / 1e9, "% of copy": share})  # fmt: skip
            task.advance()
    run.table("decode attention", rows)
    if standard:
        for name, index in NAMES.items():
            _ratio(run, name, timings[index], "per head")
        for name in ("one_head", "ragged"):
            _ratio(run, f"{name}_sdpa", timings[NAMES[name]], "torch SDPA")
        for name, index, other in (("balanced", 3, "per head"), ("multi_query", 4, "8 calls")):
            ours, theirs = (1e3 * timings[index][label].wall for label in ("lean", other))
            run.measure(name, ours=ours, baseline=theirs, value=ours / theirs)
        rate, copy = (r / timings[0][w].wall / 1e9 for r, w in ((found[0].bytes, "lean"), (copied, "copy")))
        run.measure("bandwidth", ours=rate, baseline=copy, value=rate / copy)
    else:
        for name in (*NAMES, "one_head_sdpa", "ragged_sdpa", "balanced", "multi_query", "bandwidth"):
            run.unmeasured(name, why="set on the standard shapes and two threads; this run timed others")
    errors = [_error(run, *shape, dim, getattr(torch, dtype)) for shape in timed]
    if dtype == "float32":
        run.measure("error", ours=max(errors), value=max(errors))
    else:
        run.unmeasured("error", why=f"set for float32; largest error here in {dtype}: {max(errors):.1e}")
    if model is None:
        run.unmeasured("generation", why="needs model=hf:...")
    else:
        with torch_threads(threads):
            ours, theirs, same = time_generation(model, context, new_tokens, run.device, run.seed)
        run.measure("generation", ours=ours, baseline=theirs, value=ours / theirs)
        run.note(f"{same:.0%} of the generated tokens are those of SDPA.")
    _time_gpu(run, repeats)
    run.figure("milliseconds", _draw(found, timings))


def _ratio(run: Any, name: str, timings: dict[str, Timing], other: str) -> None:
    ours, theirs = 1e3 * timings["lean"].wall, 1e3 * timings[other].wall
    run.measure(name, ours=ours, baseline=theirs, value=theirs / ours)


def _error(run: Any, lengths: list[int], kv_heads: int, group: int, dim: int, dtype: torch.dtype) -> float:
    """Largest absolute difference from float64 on the same rounded inputs."""
    q, k, v, long = inputs(lengths, kv_heads, group, dim, dtype, run.device, run.seed)
    exact = lean_decode(q.double(), k.double(), v.double(), long, return_lse=True)[0]
    return float((lean_decode(q, k, v, long, schedule="lean", return_lse=True)[0].double() - exact).abs().max())


def _time_gpu(run: Any, repeats: int) -> None:
    names = ["gpu_floor", "gpu_per_head", "gpu_split", "gpu_ragged", "gpu_sdpa", "gpu_short"]
    if run.device.type != "cuda":
        for name in names:
            run.unmeasured(name, why="no GPU")
        return
    bf16, wait = torch.bfloat16, torch.cuda.synchronize
    long, ragged = cases([([262144], 8, 4), ([131072] + 15 * [2048], 8, 4)], 128, bf16, run.device, SPLITS, run.seed)
    timings = interleaved(long.functions, repeats, wait)
    rate = long.bytes / timings["lean"].wall / 4.8e12
    run.measure("gpu_floor", ours=1e6 * timings["lean"].wall, baseline=long.bytes / 4.8e6, value=rate)
    _ratio(run, "gpu_per_head", timings, "per head")
    _ratio(run, "gpu_sdpa", timings, "torch SDPA")
    for name, best in (("gpu_split", timings), ("gpu_ragged", interleaved(ragged.functions, repeats, wait))):
        _ratio(run, name, best, min((f"split({n})" for n in SPLITS), key=lambda label: best[label].wall))
    q, k, v, lengths = inputs([512], 8, 4, 128, bf16, run.device, run.seed)
    lean_decode(q, k, v, lengths)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(100):
            lean_decode(q, k, v, lengths)
    spent = 1e4 * interleaved({"lean": partial(graph.replay)}, repeats, wait)["lean"].wall
    run.measure("gpu_short", ours=spent, value=spent)


def _draw(found: list[Case], timings: list[dict[str, Timing]]) -> Figure:
    figure = Figure(figsize=(7.5, 1.1 * len(found) + 1))
    axes = figure.add_subplot()
    marks = {"lean": "o", "per head": "s", "torch SDPA": "^"}
    for label, mark in marks.items():
        axes.plot([1e3 * t[label].wall for t in timings], range(len(found)), mark, label=label)
    axes.set_yticks(range(len(found)), [case.name for case in found])
    axes.set(xscale="log", xlabel="milliseconds a step", title="decode attention", ylim=(len(found) - 0.5, -0.5))
    axes.grid(axis="x", alpha=0.3)
    axes.legend()
    return figure
