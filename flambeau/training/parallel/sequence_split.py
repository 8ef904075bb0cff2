"""Parts of a sequence on the ranks of one mesh axis: cutting batches and activations, and putting them together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from flambeau.nn.ring import split_positions
from flambeau.nn.ring.layout import Balance

IGNORED = -100  # target of padding


def shard_sequence(batch: Any, mesh: DeviceMesh, balance: Balance = "none") -> Any:
    """This rank's part of every sequence of a batch that is the same on all ranks of `mesh` (one axis: cp).

    Tensors of shape [batch, length, ...] are cut, `length` being that of the first tensor with two axes; others stay
    as they are. Sequences that cannot be divided are padded with 0, targets (``"targets"``, ``"labels"``) with -100.

    Args:
        batch: a tensor, a tuple or list of tensors, or a dict.
        balance: "zigzag" for causal models, see :func:`flambeau.nn.split_positions`.

    Returns:
        The same structure. A dict also gets ``"positions"`` [1, chunk], the places of this rank's tokens in the whole
        sequence, and, if there is padding, a ``"mask"`` (or an extended ``"attention_mask"``) that is False for it.

    Raises:
        TypeError: a batch of another structure.
        ValueError: no tensor has a length.
    """
    return part_of(batch, mesh.size(), mesh.get_local_rank(), balance)


def part_of(batch: Any, ranks: int, rank: int, balance: Balance = "none") -> Any:
    """`shard_sequence` for rank `rank` of `ranks`."""
    if isinstance(batch, Tensor):
        return part_of({"tokens": batch}, ranks, rank, balance)["tokens"]
    if isinstance(batch, tuple | list):
        # Of a pair of inputs and targets the second is what ignored targets are for.
        named = {("targets" if i else "tokens") + str(i): item for i, item in enumerate(batch)}
        parts = part_of(named, ranks, rank, balance)
        return type(batch)(parts[name] for name in named)
    if not isinstance(batch, Mapping):
        raise TypeError(f"batch must be a tensor, a tuple, a list or a dict of tensors, got {type(batch).__name__}")
    sequences = [item for item in batch.values() if isinstance(item, Tensor) and item.ndim >= 2]
    if not sequences:
        raise ValueError("batch must hold a tensor of shape [batch, length, ...]")
    rows, length = sequences[0].shape[:2]
    table = split_positions(length, ranks, balance)
    parts = {}
    for name, item in batch.items():
        if not isinstance(item, Tensor) or item.ndim < 2 or item.shape[1] != length:
            parts[name] = item
            continue
        target = name.startswith(("targets", "labels")) and not item.is_floating_point()
        parts[name] = take(item, table[rank], IGNORED if target else 0)
    parts["positions"] = table[rank][None].to(sequences[0].device)
    if table.numel() > length and not {"mask", "attention_mask"} & set(batch):
        parts["mask"] = (parts["positions"] < length).expand(rows, -1)
    return parts


def unshard_sequence(
    part: Float[Tensor, "batch chunk *rest"], mesh: DeviceMesh, balance: Balance = "none", length: int | None = None
) -> Float[Tensor, "batch length *rest"]:
    """The whole sequence, on every rank, from the parts; with gradients, if all ranks use the whole alike.

    length: of the sequence without padding, by default all of it.
    """
    ranks = mesh.size()
    table = split_positions(ranks * part.shape[1], ranks, balance)
    whole = JoinSequence.apply(part, mesh.get_group(), table)
    return whole if length is None else whole[:, :length]


def sequence_mean(losses: Float[Tensor, "batch chunk"], valid: Tensor, group: dist.ProcessGroup) -> Float[Tensor, ""]:
    """This rank's share of the mean loss over the valid tokens of all ranks: the shares add up to the mean.

    A mean of the ranks' means would weigh tokens unequally. valid: True for tokens that count. No token at all gives 0.
    """
    count = valid.sum()
    dist.all_reduce(count, group=group)
    return (losses * valid).sum() / count.clamp(min=1)


def first_token(hidden: Float[Tensor, "batch width"], group: dist.ProcessGroup) -> Float[Tensor, "batch width"]:
    """What the rank with the first token (rank 0) passes in, on all ranks; gradients are summed into that rank.

    A head on it then gives the same on all ranks, and counts once if each rank divides its loss by their number.
    """
    return _FirstToken.apply(hidden, group)


def take(tensor: Tensor, positions: Tensor, fill: float = 0) -> Tensor:
    """Tokens (axis 1) at `positions`; `fill` behind the end."""
    length = tensor.shape[1]
    extra = max(0, int(positions.max()) + 1 - length)
    if extra:
        tensor = F.pad(tensor, (0,) * (2 * (tensor.ndim - 2)) + (0, extra), value=fill)
    return tensor.index_select(1, positions.to(tensor.device))


def join(part: Tensor, group: dist.ProcessGroup, table: Tensor) -> Tensor:
    """Tokens of all ranks in the order of their positions."""
    parts = [torch.empty_like(part, memory_format=torch.contiguous_format) for _ in range(group.size())]
    dist.all_gather(parts, part.contiguous(), group=group)
    return torch.cat(parts, 1).index_select(1, table.flatten().argsort().to(part.device))


class SplitSequence(torch.autograd.Function):
    """Each rank takes its tokens of what all hold alike; backward, all get the gradients of all tokens."""

    @staticmethod
    def forward(ctx: Any, whole: Tensor, group: dist.ProcessGroup, table: Tensor) -> Tensor:
        ctx.group, ctx.table, ctx.length = group, table, whole.shape[1]
        return take(whole, table[group.rank()])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        return join(gradient, ctx.group, ctx.table)[:, : ctx.length], None, None


class JoinSequence(torch.autograd.Function):
    """All ranks get all tokens; backward, each takes the gradients of its own, as what follows is the same on all."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, group: dist.ProcessGroup, table: Tensor) -> Tensor:
        ctx.group, ctx.table = group, table
        return join(part, group, table)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        return take(gradient, ctx.table[ctx.group.rank()]), None, None


class _FirstToken(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        hidden = hidden.clone(memory_format=torch.contiguous_format)
        dist.broadcast(hidden, group=group, group_src=0)
        return hidden

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient, group=ctx.group)
        return gradient if ctx.group.rank() == 0 else torch.zeros_like(gradient), None
