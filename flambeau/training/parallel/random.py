"""Random numbers that differ over the ranks of a parallel region and agree everywhere else.

Dropout on activations that all ranks hold must draw the same mask on each; dropout on what a rank alone holds (its
heads, its part of the sequence) must not (Shoeybi et al. 2019, appendix B.2). Megatron-LM keeps a second generator for
that, which checkpoints and recomputation have to carry along. Here the second stream is a function of the first one:
entering a region draws a key from the shared stream and seeds the generators with (key, rank). Whatever saves and
restores PyTorch's own generators, activation checkpointing and training checkpoints among them, therefore restores
both. DTensor itself has no such stream on the CPU: its dropout repeats one mask on all ranks there.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

_OFFSET = 2718  # Megatron-LM's distance between the two streams


class RankStream:
    """Opened, PyTorch's generators yield numbers of rank `rank` alone; closed, they go on where they had stopped.

    All ranks must open it at the same place of the same shared stream. It does not nest, and both calls may be
    repeated.
    """

    def __init__(self, rank: int):
        self.rank = rank
        self._shared: tuple[torch.Tensor, torch.Tensor | None] | None = None

    def open(self) -> None:
        """Switch to this rank's stream."""
        if self._shared is not None:
            return
        key = int(torch.randint(2**62, (), dtype=torch.int64, device="cpu"))
        on_gpu = torch.cuda.is_available() and torch.cuda.is_initialized()
        self._shared = (torch.get_rng_state(), torch.cuda.get_rng_state() if on_gpu else None)
        seed = key + _OFFSET + self.rank
        torch.default_generator.manual_seed(seed)
        if on_gpu:
            torch.cuda.manual_seed(seed)

    def close(self) -> None:
        """Switch back to the shared stream."""
        if self._shared is None:
            return
        cpu, gpu = self._shared
        torch.set_rng_state(cpu)
        if gpu is not None:
            torch.cuda.set_rng_state(gpu)
        self._shared = None


@contextmanager
def rank_stream(rank: int) -> Iterator[None]:
    """Random numbers inside the block differ between ranks; those behind it agree as if the block had not drawn any."""
    stream = RankStream(rank)
    stream.open()
    try:
        yield
    finally:
        stream.close()


def draw_by_rank(module: nn.Module, rank: int, until: nn.Module | None = None) -> None:
    """Let `module` draw its random numbers from `rank`'s stream while training, from then on.

    until: a module called inside it that draws from the shared stream again, as what is called behind it.
    """
    stream = RankStream(rank)

    def enter(module: nn.Module, _: Any) -> None:
        if module.training:
            stream.open()

    module.register_forward_pre_hook(enter)
    module.register_forward_hook(lambda *_: stream.close(), always_call=True)
    if until is not None:
        until.register_forward_pre_hook(lambda *_: stream.close())
