"""Decode attention as an operator that PyTorch can trace and export; for inference, it has no gradient."""

from typing import Any

import torch
from torch import Tensor

from flambeau.ops import build, triton_kernels
from flambeau.ops.lean_attention import cpu
from flambeau.ops.lean_attention.reference import lean_reference

GPU = "flambeau.ops.lean_attention.gpu"
MOST_ROWS = 128  # query rows of one key/value head that a Triton program holds


def obstacle(backend: str, q: Tensor, k: Tensor) -> str | None:
    """Why ``backend`` ("cpu" or "triton") cannot run this on these inputs, or None."""
    if q.dtype not in cpu.TYPES:
        return f"it needs float32, bfloat16 or float16, q is {q.dtype}"
    if backend == "cpu":
        return None if q.device.type == "cpu" else f"it needs CPU tensors, q is on {q.device}"
    if not triton_kernels.installed():
        return "Triton is not installed (pip install triton)"
    if q.device.type == "cpu" and q.dtype == torch.bfloat16:
        return "Triton's interpreter cannot multiply bfloat16"
    rows, dim = q.shape[1] * q.shape[2] // k.shape[1], q.shape[3]
    if rows > MOST_ROWS:
        return f"it holds at most {MOST_ROWS} query rows of a key/value head (queries times group), here {rows}"
    if dim > 256:
        return f"it needs a head size of at most 256, q has {dim}"
    return None


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
    scale: float,
    window: int,
    softcap: float,
    tile: int,
    pieces: int,
    workers: int,
    two_pass: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """Output [B,N,H,d] like q and log-sum-exp [B,N,H]; arguments as ``cpu.decode`` takes them, already checked."""
    out, lse = _outputs(q)
    if backend == "auto":
        backend = "cpu" if build.available("lean_attention", cpu.load) else "reference"
    tensors = q, k, v, lengths, block_table, starts, slopes, sinks, tail_mask
    if backend == "reference":
        compute = torch.promote_types(q.dtype, torch.float32)
        exact, exact_lse = lean_reference(q.to(compute), *tensors[1:], scale, window, softcap)
        return exact.to(q.dtype), exact_lse
    options: dict[str, Any] = {
        "scale": scale, "window": window, "softcap": softcap, "tile": tile, "pieces": pieces, "workers": workers
    }  # fmt: skip
    if backend == "cpu":
        cpu.decode(*tensors, out, lse, **options)
    else:
        with torch.cuda.device_of(q):  # a Triton kernel starts on the current device
            triton_kernels.kernels(GPU, q.device).decode(*tensors, out, lse, **options, two_pass=two_pass)
    return out, lse


def _outputs(q: Tensor) -> tuple[Tensor, Tensor]:
    lse = torch.float64 if q.dtype == torch.float64 else torch.float32
    return torch.empty(q.shape, dtype=q.dtype, device=q.device), q.new_empty(q.shape[:3], dtype=lse)


lean_decode_op = torch.library.custom_op("flambeau::lean_decode", decode, mutates_args=())


@lean_decode_op.register_fake
def _fake(
    q, k, v, lengths, block_table, starts, slopes, sinks, tail_mask, scale, window, softcap, tile, pieces, workers,
    two_pass, backend,
):  # fmt: skip
    return _outputs(q)


def run(*arguments) -> tuple[Tensor, Tensor]:
    """``decode``, through the operator only where something traces it: its dispatch costs as much as short contexts."""
    plain = type(arguments[0]) is Tensor and not torch.compiler.is_compiling()
    return (decode if plain else lean_decode_op)(*arguments)
