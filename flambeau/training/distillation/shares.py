"""What a loop of one's own needs of a process group, if there is one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from torch.utils._pytree import tree_map


def own_rows(batch: Any) -> Any:
    """This process's rows of a batch that all processes have.

    Raises:
        ValueError: the rows cannot be divided over the processes.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return batch
    number, rank = dist.get_world_size(), dist.get_rank()

    def part(tensor: Any) -> Any:
        if not isinstance(tensor, Tensor):
            return tensor
        if len(tensor) % number:
            raise ValueError(f"a batch of {len(tensor)} cannot be divided over {number} processes")
        return tensor.chunk(number)[rank]

    return tree_map(part, batch)


def share_buffers(module: nn.Module) -> None:
    """Give every process the first one's buffers: each has seen its own rows, so running statistics differ."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        for buffer in module.buffers():
            dist.broadcast(buffer, 0)


def average_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Make each gradient the mean over all processes: that of the mean loss over their rows."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        for parameter in parameters:
            if parameter.grad is not None:
                dist.all_reduce(parameter.grad)
                parameter.grad /= dist.get_world_size()
