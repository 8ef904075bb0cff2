"""Whole tensors onto the processes, and back."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset


def distribute_like(live: DTensor, whole: Tensor) -> DTensor:
    """The part of `whole`, which every process has, that this one holds of `live`; no communication."""
    mesh, placements = live.device_mesh, live.placements
    shape, offset = compute_local_shape_and_global_offset(whole.shape, mesh, placements)
    part = whole[tuple(slice(start, start + size) for start, size in zip(offset, shape, strict=True))]
    part = part.contiguous().to(live.device)
    return DTensor.from_local(part, mesh, placements, run_check=False, shape=whole.shape, stride=whole.stride())


def gathered(value: Any) -> Any:
    """Nested `value` with every DTensor as a whole tensor on the CPU. Every process has to call it, and gets all."""
    if isinstance(value, DTensor):
        return value.full_tensor().cpu()
    if isinstance(value, dict):
        return {key: gathered(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)([gathered(item) for item in value])
    return value
