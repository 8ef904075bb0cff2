"""Timing of decoders and of their forwards, taken in turns so that other load on the machine hits all alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import torch

from flambeau.generation.state import CausalModel


def in_turns(
    runs: Mapping[str, Callable[[], object]], device: torch.device | str = "cpu", *, repeats: int = 3
) -> dict[str, float]:
    """Median seconds of each of the runs, called one after the other `repeats` times."""
    device = torch.device(device)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, call in runs.items():
            began = _now(device)
            call()
            seconds[name].append(_now(device) - began)
    return {name: sorted(times)[repeats // 2] for name, times in seconds.items()}


@torch.inference_mode()
def step_seconds(
    model: CausalModel,
    windows: tuple[int, ...],
    *,
    batch: int = 1,
    context: int = 32,
    repeats: int = 20,
    device: torch.device | str = "cpu",
) -> dict[int, float]:
    """Median seconds of one cached forward of W tokens behind `context` tokens, all windows timed in turns."""
    device = torch.device(device)
    cache = model.new_cache(batch, context + max(windows))
    model(torch.zeros(batch, context, dtype=torch.long, device=device), positions=None, cache=cache, keep=1)
    seconds: dict[int, list[float]] = {window: [] for window in windows}
    for turn in range(repeats + 2):
        for window in windows:
            tokens = torch.zeros(batch, window, dtype=torch.long, device=device)
            began = _now(device)
            model(tokens, positions=None, cache=cache, keep=window)
            if turn >= 2:  # the first forwards allocate
                seconds[window].append(_now(device) - began)
            cache.truncate(context)
    return {window: sorted(times)[repeats // 2] for window, times in seconds.items()}


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
