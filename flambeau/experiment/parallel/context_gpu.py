"""A rank of a ring on a GPU that is there once: memory and speed of its attention."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from flambeau.nn import Loopback, ring_attention
from flambeau.ops.bench import interleaved

HEADS, HEAD_DIM = 12, 64  # BERT-Base


def gpu_memory(length: int, ranks: int, device: torch.device) -> int:
    """Peak bytes of forward and backward of `ranks` ranks in turn, each with its part of `length` tokens."""
    torch.cuda.reset_peak_memory_stats(device)
    for rank in range(ranks):
        q, k, v = _leaves(length // ranks, device)
        ring_attention(q, k, v, Loopback(ranks, rank)).backward(torch.ones_like(q))
    return torch.cuda.max_memory_allocated(device)


def gpu_speed(length: int, device: torch.device) -> tuple[float, float]:
    """Seconds of forward and backward over `length` tokens: ours, and PyTorch's flash kernel."""
    leaves = _leaves(length, device)

    def of(attention: Callable[..., Tensor]) -> Callable[[], None]:
        return lambda: attention(*leaves).backward(torch.ones_like(leaves[0]))

    # With a length, ring_attention does not hand over to the very kernel it is compared with.
    cases = {
        "ours": of(lambda q, k, v: ring_attention(q, k, v, None, lengths=length)),
        "flash": of(F.scaled_dot_product_attention),
    }
    timings = interleaved(cases, 3, torch.cuda.synchronize)
    return timings["ours"].wall, timings["flash"].wall


def _leaves(tokens: int, device: torch.device) -> list[Tensor]:
    shape = (1, HEADS, tokens, HEAD_DIM)
    return [torch.randn(shape, device=device, dtype=torch.bfloat16, requires_grad=True) for _ in range(3)]
