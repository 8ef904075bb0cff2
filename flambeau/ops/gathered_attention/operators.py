"""The Triton kernels of gathered attention as an operator that PyTorch can trace and differentiate once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flambeau.ops import triton_kernels

GPU = "flambeau.ops.gathered_attention.gpu"


def obstacle(queries: Tensor, values: Tensor, bias: Tensor | None) -> str | None:
    """Why the Triton kernels cannot run this, or None."""
    if not triton_kernels.installed():
        return "Triton is not installed (pip install triton)"
    dim = queries.shape[-1]
    if dim & (dim - 1) or not 16 <= dim <= 128 or values.shape[-1] != dim:
        return f"it needs queries and values of one size, a power of two from 16 to 128, got {dim}, {values.shape[-1]}"
    if bias is not None:
        return "it takes no bias"
    if queries.dtype not in (torch.float32, torch.bfloat16, torch.float16) or values.dtype != queries.dtype:
        return f"it needs float32, bfloat16 or float16, got {queries.dtype} and {values.dtype}"
    if queries.device.type == "cpu" and queries.dtype == torch.bfloat16:
        return "Triton's interpreter cannot multiply bfloat16"
    return None


@torch.library.custom_op("flambeau::gathered_attention", mutates_args=())
def gathered_forward(
    q: Tensor, k: Tensor, v: Tensor, rows: Tensor, columns: Tensor, row_groups: Tensor, column_groups: Tensor,
    causal: bool, mask_self: bool, reach: int, scale: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Float32 outputs per slot and the log of their normalisers; a negative reach is none."""
    q, k, v, *index = (x.contiguous() for x in (q, k, v, rows, columns, row_groups, column_groups))
    module = triton_kernels.kernels(GPU, q.device)
    with torch.cuda.device_of(q):  # a Triton kernel starts on the current device
        return module.forward(q, k, v, tuple(index), causal, mask_self, reach, scale)


@torch.library.custom_op("flambeau::gathered_attention_backward", mutates_args=())
def gathered_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, rows: Tensor, columns: Tensor, row_groups: Tensor,
    column_groups: Tensor, out: Tensor, lse: Tensor, causal: bool, mask_self: bool, reach: int, scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Float32 gradients per position of queries, keys and values."""
    dout, q, k, v, *index = (x.contiguous() for x in (dout, q, k, v, rows, columns, row_groups, column_groups))
    module = triton_kernels.kernels(GPU, q.device)
    with torch.cuda.device_of(q):
        slots = module.backward(dout, q, k, v, tuple(index), out, lse, causal, mask_self, reach, scale)
    return (
        _add_up(slots[0], index[0], q.shape),
        _add_up(slots[1], index[1], k.shape),
        _add_up(slots[2], index[1], v.shape),
    )


def _add_up(slots: Tensor, positions: Tensor, shape: torch.Size) -> Tensor:
    flat = positions.flatten(2)[..., None].expand(-1, -1, -1, shape[-1])
    return slots.new_zeros(shape).scatter_add(2, flat, slots.flatten(2, 3))


@gathered_forward.register_fake
def _forward_fake(q, k, v, rows, columns, row_groups, column_groups, causal, mask_self, reach, scale):
    return q.new_empty(*rows.shape, q.shape[3], dtype=torch.float32), q.new_empty(rows.shape, dtype=torch.float32)


@gathered_backward.register_fake
def _backward_fake(
    dout, q, k, v, rows, columns, row_groups, column_groups, out, lse, causal, mask_self, reach, scale
):  # fmt: skip
    return tuple(torch.empty_like(x, dtype=torch.float32) for x in (q, k, v))


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:7], *output)
    ctx.options = inputs[7:]


def _differentiate(ctx: Any, dout: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    q, k, v, *rest = ctx.saved_tensors
    dq, dk, dv = gathered_backward(dout, q, k, v, *rest, *ctx.options)
    return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), *[None] * 8


gathered_forward.register_autograd(_differentiate, setup_context=_keep)
