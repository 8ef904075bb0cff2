"""Ulysses: sequence exchanged for heads, whole attention on a part of the heads, and back."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor


class SequenceToHeads(torch.autograd.Function):
    """[batch, heads, chunk, dim] of a part of the sequence to [batch, heads / ranks, ranks * chunk, dim] of all of it.

    One all-to-all each way (Jacobs et al. 2023, arXiv 2309.14509, section 3); its gradient is the way back.
    """

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return _to_heads(tensor, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return _to_sequence(gradient, ctx.group), None


class HeadsToSequence(torch.autograd.Function):
    """The way back of `SequenceToHeads`."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return _to_sequence(tensor, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return _to_heads(gradient, ctx.group), None


def shared_heads(keys: Float[Tensor, "b kv_heads k d"], heads: int, ranks: int) -> Float[Tensor, "b more_kv_heads k d"]:
    """Heads of keys or values repeated until they can be divided over the ranks.

    Raises ValueError if the heads of the queries cannot be divided either.
    """
    times = ranks // math.gcd(keys.shape[1], ranks)
    if heads % ranks or heads % (keys.shape[1] * times):
        raise ValueError(
            f"mode 'ulysses' divides heads over ranks: got {heads} heads, {keys.shape[1]} of keys, and {ranks} ranks; "
            f"use mode 'blockwise', or a ring of Ulysses groups"
        )
    return keys if times == 1 else keys.repeat_interleave(times, dim=1)


def _to_heads(tensor: Tensor, group: dist.ProcessGroup) -> Tensor:
    ranks = group.size()
    sent = tensor.unflatten(1, (ranks, -1)).transpose(0, 1).contiguous()
    received = torch.empty_like(sent)
    dist.all_to_all_single(received, sent, group=group)
    return received.permute(1, 2, 0, 3, 4).flatten(2, 3)


def _to_sequence(tensor: Tensor, group: dist.ProcessGroup) -> Tensor:
    sent = tensor.unflatten(2, (group.size(), -1)).permute(2, 0, 1, 3, 4).contiguous()
    received = torch.empty_like(sent)
    dist.all_to_all_single(received, sent, group=group)
    return received.transpose(0, 1).flatten(1, 2)
