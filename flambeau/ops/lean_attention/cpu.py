"""Decode attention on the CPU: the compiled kernel of ``cpu.cpp``, called through ctypes."""

import ctypes
import functools
import os
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flambeau.ops import build

TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
POINTERS = ("q", "k", "v", "lengths", "starts", "block_table", "slopes", "sinks", "tail_mask", "out", "lse", "counts")
SIZES = (
    "q_batch", "q_query", "q_head", "k_outer", "k_head", "k_key", "v_outer", "v_head", "v_key", "batch", "queries",
    "heads", "kv_heads", "dim", "page", "blocks", "window", "tile", "pieces", "units", "threads", "type",
)  # fmt: skip


class _Call(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in POINTERS),
        *((name, ctypes.c_int64) for name in SIZES),
        ("scale", ctypes.c_double),
        ("softcap", ctypes.c_double),
    ]


class Counts(NamedTuple):
    """What a call did: bytes of keys and values read, partial segments stored, work units."""

    bytes: int
    partials: int
    units: int


@functools.cache
def _kernel(isa: str) -> Any:
    library: Any = build.load(Path(__file__).with_name("cpu.cpp"), isa)
    library.lean_decode.argtypes = [ctypes.c_void_p]
    library.lean_decode.restype = None
    return library.lean_decode


def load() -> None:
    """Build the kernel; raises ``BuildError``."""
    _kernel(build.instruction_set())


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def decode(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lengths: Tensor,
    block_table: Tensor | None,
    starts: Tensor | None,
    slopes: Tensor | None,
    sinks: Tensor | None,
    tail_mask: Tensor | None,
    out: Tensor,
    lse: Tensor,
    *,
    scale: float,
    window: int,
    softcap: float,
    tile: int,
    pieces: int,
    workers: int,
) -> Counts:
    """Fill out [B,N,H,d] and lse [B,N,H] from q [B,N,H,d] and k, v [B or pages, kv heads, keys, d].

    Arguments are checked already: lengths and starts int64, block_table int32 [B,blocks], slopes float32 [B,H], sinks
    float32 [H], tail_mask bool [B,N,N], all contiguous; q, k and v may have any strides but the last.

    Args:
        pieces: 0 divides all tiles equally among the workers, n cuts every output tile into n.
        workers: threads, and work units of the former schedule. More threads than processors are not started.
    """
    batch, queries, heads, dim = q.shape
    counts = (ctypes.c_int64 * 3)()
    blocks = 0 if block_table is None else block_table.shape[1]
    call = _Call(
        q.data_ptr(), k.data_ptr(), v.data_ptr(), lengths.data_ptr(), _pointer(starts), _pointer(block_table),
        _pointer(slopes), _pointer(sinks), _pointer(tail_mask), out.data_ptr(), lse.data_ptr(),
        ctypes.addressof(counts), *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], batch, queries, heads, k.shape[1],
        dim, k.shape[2], blocks, window, tile, pieces, workers, min(workers, os.cpu_count() or 1), TYPES[q.dtype],
        scale, softcap,
    )  # fmt: skip
    _kernel(build.instruction_set())(ctypes.byref(call))
    return Counts(*counts)
