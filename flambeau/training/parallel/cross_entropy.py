"""Cross entropy over a vocabulary that is split over ranks, without ever gathering it."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor, nn

_CHUNK = 2**24  # logits turned to fp32 at a time


def vocab_part(vocab: int, rank: int, ranks: int) -> tuple[int, int]:
    """First and one past the last token of a rank's rows of an embedding of `vocab` rows, as DTensor's Shard(0)."""
    size = -(-vocab // ranks)
    return min(rank * size, vocab), min((rank + 1) * size, vocab)


def padded_vocab(vocab: int, ranks: int, multiple: int = 128) -> int:
    """`vocab` rounded up to a multiple of ``multiple * ranks``, so that every rank's part makes a fast product."""
    step = multiple * ranks
    return -(-vocab // step) * step


def vocab_parallel_cross_entropy(
    logits: Float[Tensor, "*tokens part"],
    targets: Int[Tensor, "*tokens"],
    group: dist.ProcessGroup,
    vocab: int,
    *,
    padded: int | None = None,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
) -> Float[Tensor, "*tokens"]:
    """Cross entropy (nats, fp32) of every token, equal on all ranks (Shoeybi et al. 2019, section 3).

    The ranks exchange one number a token three times: the largest logit, the sum of exponentials, the target's logit
    (with label smoothing a fourth: the sum of logits). Nothing of the size of the logits is kept for the backward
    but the logits themselves: the softmax is computed again, a chunk at a time.

    Args:
        logits: this rank's columns, `vocab_part(vocab or padded, rank, ranks)`.
        targets: token ids; the loss and gradient of `ignore_index` are 0.
        group: the ranks that hold the parts.
        vocab: tokens there really are.
        padded: columns there are with padding; padding takes no probability and no gradient.
        label_smoothing: the probability spread evenly over the vocabulary, as in ``F.cross_entropy``.

    Raises:
        ValueError: logits that are not this rank's part (gathered ones, say), targets of another shape, an argument
            out of range.
        IndexError: a target outside the vocabulary (a failed assertion on a GPU).
    """
    rank, ranks = dist.get_rank(group), dist.get_world_size(group)
    padded = vocab if padded is None else padded
    if padded < vocab:
        raise ValueError(f"padded must be at least vocab ({vocab}), got {padded}")
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing must lie in [0, 1), got {label_smoothing}")
    start, end = vocab_part(padded, rank, ranks)
    if logits.shape[-1] != end - start:
        gathered = " (these are gathered logits)" if logits.shape[-1] in (vocab, padded) else ""
        raise ValueError(
            f"logits must be columns {start}..{end - 1} of {padded} on rank {rank} of {ranks}, "
            f"got {logits.shape[-1]} columns{gathered}"
        )
    if targets.shape != logits.shape[:-1]:
        raise ValueError(f"targets must have shape {list(logits.shape[:-1])}, got {list(targets.shape)}")
    outside = (targets != ignore_index) & ((targets < 0) | (targets >= vocab))
    if targets.device.type != "cpu":
        torch._assert_async(~outside.any())  # asking a GPU would make it wait
    elif outside.any():
        wrong = targets[outside]
        raise IndexError(f"targets must lie in [0, {vocab}), got [{int(wrong.min())}, {int(wrong.max())}]")
    columns = max(0, min(end, vocab) - start)
    loss = _CrossEntropy.apply(
        logits.flatten(0, -2), targets.flatten(), group, start, columns, vocab, label_smoothing, ignore_index
    )
    return loss.view(targets.shape)


class VocabParallelCrossEntropy(nn.Module):
    """`vocab_parallel_cross_entropy` as a module; takes the place of a model's ``cross_entropy``."""

    def __init__(self, vocab: int, group: dist.ProcessGroup, label_smoothing: float = 0.0):
        super().__init__()
        self.vocab, self.group, self.label_smoothing = vocab, group, label_smoothing

    def forward(
        self, logits: Float[Tensor, "*tokens part"], targets: Int[Tensor, "*tokens"]
    ) -> Float[Tensor, "*tokens"]:
        return vocab_parallel_cross_entropy(
            logits, targets, self.group, self.vocab, label_smoothing=self.label_smoothing
        )


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        targets: Tensor,
        group: Any,
        start: int,
        columns: int,
        vocab: int,
        smoothing: float,
        ignore: int,
    ) -> Tensor:
        accurate = torch.float64 if logits.dtype == torch.float64 else torch.float32
        real, ignored = logits[:, :columns], targets == ignore
        owned = (targets >= start) & (targets < start + columns)
        index = (targets - start).where(owned, 0)[:, None]
        largest = logits.new_full(targets.shape, -torch.inf, dtype=accurate)
        if columns:
            largest = real.amax(1).to(accurate)
        dist.all_reduce(largest, dist.ReduceOp.MAX, group=group)
        total, target, summed = (torch.zeros_like(largest) for _ in range(3))
        if columns:
            for rows in _chunks(real):
                # exp of the difference never overflows: the largest logit of all ranks gives 1.
                total[rows] = (real[rows].to(accurate) - largest[rows, None]).exp_().sum(1)
                if smoothing:
                    summed[rows] = (real[rows].to(accurate) - largest[rows, None]).sum(1)
            target = (real.gather(1, index)[:, 0].to(accurate) - largest).where(owned, 0.0)
        dist.all_reduce(total, group=group)
        dist.all_reduce(target, group=group)
        loss = (1 - smoothing) * (total.log() - target)
        if smoothing:
            dist.all_reduce(summed, group=group)
            loss += smoothing * (total.log() - summed / vocab)
        ctx.save_for_backward(logits, largest + total.log(), index, owned, ignored)
        ctx.columns, ctx.vocab, ctx.smoothing = columns, vocab, smoothing
        return loss.masked_fill_(ignored, 0.0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        logits, log_total, index, owned, ignored = ctx.saved_tensors
        real, result = logits[:, : ctx.columns], torch.zeros_like(logits)
        grad = grad.masked_fill(ignored, 0.0)
        if ctx.columns:
            for rows in _chunks(real):
                chunk = (real[rows].to(grad.dtype) - log_total[rows, None]).exp_()
                chunk.scatter_add_(1, index[rows], (ctx.smoothing - 1) * owned[rows, None].to(chunk.dtype))
                if ctx.smoothing:
                    chunk -= ctx.smoothing / ctx.vocab
                result[rows, : ctx.columns] = chunk.mul_(grad[rows, None]).to(result.dtype)
        return result, None, None, None, None, None, None, None


def _chunks(logits: Tensor) -> list[slice]:
    rows = max(1, _CHUNK // max(1, logits.shape[1]))
    return [slice(first, first + rows) for first in range(0, logits.shape[0], rows)]
