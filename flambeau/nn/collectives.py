"""Collective operations on plain tensors with their adjoints as backward, for use inside a model.

Each pairs with the one that is its transpose: what one does forward the other does backward (Shoeybi et al. 2019,
arXiv 1909.08053, section 3; for sequence parallelism Korthikanti et al. 2022, arXiv 2205.05198, section 4.2.2).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

_gather_into = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # renamed in torch 2.13
_reduce_scatter_into = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


def copy_to_ranks(x: Float[Tensor, "*shape"], group: dist.ProcessGroup) -> Float[Tensor, "*shape"]:
    """The paper's f: `x` itself; its gradient is summed over the ranks."""
    return _Copy.apply(x, group)


def sum_over_ranks(x: Float[Tensor, "*shape"], group: dist.ProcessGroup) -> Float[Tensor, "*shape"]:
    """The paper's g: the sum of all ranks' `x`; the gradient is passed on as it is."""
    return _Sum.apply(x, group)


def gather_parts(x: Tensor, dim: int, group: dist.ProcessGroup) -> Tensor:
    """All ranks' `x` joined along `dim`; of the gradient, equal on all ranks, each keeps its part."""
    return _Gather.apply(x, dim, group)


def take_part(x: Tensor, dim: int, group: dist.ProcessGroup) -> Tensor:
    """This rank's part of `x` along `dim`; the gradients of the parts are joined. Raises ValueError if uneven."""
    return _Take.apply(x, dim, group)


def gather_summing(x: Tensor, dim: int, group: dist.ProcessGroup) -> Tensor:
    """All ranks' `x` joined along `dim`; the ranks' gradients are summed and each keeps its part."""
    return _GatherSumming.apply(x, dim, group)


def sum_and_take_part(x: Tensor, dim: int, group: dist.ProcessGroup) -> Tensor:
    """This rank's part along `dim` of the sum of all ranks' `x`; the gradients of the parts are joined.

    Raises ValueError if the ranks do not divide the size of `dim`.
    """
    return _SumAndTake.apply(x, dim, group)


def all_gather(x: Tensor, dim: int, group: dist.ProcessGroup) -> Tensor:
    """All ranks' `x`, of equal shapes, joined along `dim`; without a backward."""
    ranks, front = dist.get_world_size(group), x.movedim(dim, 0).contiguous()
    joined = front.new_empty(ranks * front.shape[0], *front.shape[1:])
    _gather_into(joined, front, group=group)
    return joined.movedim(0, dim)


def reduce_scatter(x: Tensor, dim: int, group: dist.ProcessGroup) -> Tensor:
    """This rank's part along `dim` of the sum of all ranks' `x`; without a backward."""
    front = x.movedim(dim, 0).contiguous()
    part = front.new_empty(_even(front.shape[0], dim, group), *front.shape[1:])
    _reduce_scatter_into(part, front, group=group)
    return part.movedim(0, dim)


def part_of(x: Tensor, dim: int, group: dist.ProcessGroup) -> Tensor:
    """This rank's equal part of `x` along `dim`; without a backward."""
    size = _even(x.shape[dim], dim, group)
    return x.narrow(dim, dist.get_rank(group) * size, size)


def all_reduce(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """The sum of all ranks' `x` in a new tensor; without a backward."""
    total = x.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total, group=group)
    return total


def _even(size: int, dim: int, group: dist.ProcessGroup) -> int:
    ranks = dist.get_world_size(group)
    if size % ranks:
        raise ValueError(f"dimension {dim} of size {size} cannot be divided evenly over {ranks} ranks")
    return size // ranks


class _Copy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return all_reduce(grad, ctx.group), None


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        return all_reduce(x, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return grad, None


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int, group: Any) -> Tensor:
        ctx.dim, ctx.group = dim, group
        return all_gather(x, dim, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return part_of(grad, ctx.dim, ctx.group), None, None


class _Take(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int, group: Any) -> Tensor:
        ctx.dim, ctx.group = dim, group
        return part_of(x, dim, group).clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return all_gather(grad, ctx.dim, ctx.group), None, None


class _GatherSumming(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int, group: Any) -> Tensor:
        ctx.dim, ctx.group = dim, group
        return all_gather(x, dim, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return reduce_scatter(grad, ctx.dim, ctx.group), None, None


class _SumAndTake(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int, group: Any) -> Tensor:
        ctx.dim, ctx.group = dim, group
        return reduce_scatter(x, dim, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return all_gather(grad, ctx.dim, ctx.group), None, None
