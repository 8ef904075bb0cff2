"""Megatron-LM's layers on plain tensors, for models that are written in parallel form.

`apply_tensor_parallel` splits a finished model with DTensor instead; both compute the same (Shoeybi et al. 2019,
arXiv 1909.08053, section 3).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from flambeau.nn.collectives import (
    all_gather,
    copy_to_ranks,
    gather_parts,
    reduce_scatter,
    sum_and_take_part,
    sum_over_ranks,
    take_part,
)
from flambeau.training.parallel.cross_entropy import vocab_part


class ColumnParallelLinear(nn.Module):
    """Y = X A + b with the columns of A (output features) split over the ranks: each returns its part of Y.

    The whole matrix is initialised from the default generator and cut, so that equal seeds give the same model for
    any number of ranks.

    Args:
        in_features, out_features: of the whole matrix.
        group: the ranks; ``mesh.get_group()`` of a device mesh.
        gather_output: return the whole Y on every rank.
        skip_bias_add: return ``(Y, bias)`` and leave the addition to what follows.
        sequence_parallel: X is this rank's part of the sequence, [batch, time / ranks, in_features].
        async_dgrad: sum the gradient of X over the ranks while that of A is computed; the result is the same.

    Raises:
        ValueError: the ranks do not divide out_features.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        group: dist.ProcessGroup,
        *,
        bias: bool = True,
        gather_output: bool = False,
        skip_bias_add: bool = False,
        sequence_parallel: bool = False,
        async_dgrad: bool = True,
    ):
        super().__init__()
        _divides("out_features", out_features, group)
        whole = nn.Linear(in_features, out_features, bias)
        self.group, self.gather_output, self.skip_bias_add = group, gather_output, skip_bias_add
        self.sequence_parallel, self.async_dgrad = sequence_parallel, async_dgrad
        self.weight = nn.Parameter(_cut(whole.weight, 0, group))
        self.bias = nn.Parameter(_cut(whole.bias, 0, group)) if bias else None

    def forward(self, x: Float[Tensor, "*batch in_features"]) -> Any:
        if self.sequence_parallel or self.async_dgrad:
            y = _ParallelLinear.apply(x, self.weight, self.group, self.sequence_parallel, self.async_dgrad)
        else:
            y = F.linear(copy_to_ranks(x, self.group), self.weight)
        if self.bias is not None and not self.skip_bias_add:
            y = y + self.bias
        if self.gather_output:
            y = gather_parts(y, -1, self.group)
        return (y, self.bias) if self.skip_bias_add else y


class RowParallelLinear(nn.Module):
    """Y = X A + b with the rows of A (input features) split over the ranks, whose products are summed.

    b, which every rank holds whole, is added once, behind the sum.

    Args:
        input_is_parallel: X is already this rank's part of the features, as `ColumnParallelLinear` returns it.
        sequence_parallel: return this rank's part of the sequence, [batch, time / ranks, out_features]. The gradient
            of b is then that part's, and must be summed over the ranks.

    The other arguments are `ColumnParallelLinear`'s. Raises ValueError if the ranks do not divide in_features.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        group: dist.ProcessGroup,
        *,
        bias: bool = True,
        input_is_parallel: bool = True,
        skip_bias_add: bool = False,
        sequence_parallel: bool = False,
    ):
        super().__init__()
        _divides("in_features", in_features, group)
        whole = nn.Linear(in_features, out_features, bias)
        self.group, self.input_is_parallel, self.skip_bias_add = group, input_is_parallel, skip_bias_add
        self.sequence_parallel = sequence_parallel
        self.weight = nn.Parameter(_cut(whole.weight, 1, group))
        self.bias = nn.Parameter(whole.bias.detach().clone()) if bias else None

    def forward(self, x: Float[Tensor, "*batch in_part"]) -> Any:
        if not self.input_is_parallel:
            x = take_part(x, -1, self.group)
        y = F.linear(x, self.weight)
        y = sum_and_take_part(y, 1, self.group) if self.sequence_parallel else sum_over_ranks(y, self.group)
        if self.skip_bias_add:
            return y, self.bias
        return y if self.bias is None else y + self.bias


class VocabParallelEmbedding(nn.Module):
    """An embedding whose rows (tokens) are split over the ranks; a rank adds zeros for tokens of others.

    The vocabulary need not be divisible: the last ranks hold fewer rows. Raises ValueError if it has fewer tokens
    than there are ranks.
    """

    def __init__(self, vocab: int, width: int, group: dist.ProcessGroup, *, sequence_parallel: bool = False):
        super().__init__()
        if vocab < dist.get_world_size(group):
            raise ValueError(
                f"vocab must be at least the number of ranks, got {vocab} and {dist.get_world_size(group)}"
            )
        self.group, self.sequence_parallel = group, sequence_parallel
        self.start, self.end = vocab_part(vocab, dist.get_rank(group), dist.get_world_size(group))
        self.weight = nn.Parameter(nn.Embedding(vocab, width).weight.detach()[self.start : self.end].clone())

    def forward(self, tokens: Int[Tensor, "batch time"]) -> Float[Tensor, "batch time width"]:
        """The whole embedding; with `sequence_parallel` this rank's part of the sequence."""
        owned = (tokens >= self.start) & (tokens < self.end)
        if self.end > self.start:
            x = F.embedding((tokens - self.start).where(owned, 0), self.weight) * owned[..., None]
        else:
            x = self.weight.new_zeros(*tokens.shape, self.weight.shape[1])
        return sum_and_take_part(x, 1, self.group) if self.sequence_parallel else sum_over_ranks(x, self.group)


class _ParallelLinear(torch.autograd.Function):
    """X A' where X's gradient is communicated while A's is computed, and X's gathered form is not kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, group: Any, sequence: bool, overlap: bool) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.group, ctx.sequence, ctx.overlap = group, sequence, overlap
        return F.linear(all_gather(x, 1, group) if sequence else x, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        grad_x = grad @ weight
        if ctx.sequence:
            grad_x, x = reduce_scatter(grad_x, 1, ctx.group), all_gather(x, 1, ctx.group)
        else:
            sent = dist.all_reduce(grad_x, group=ctx.group, async_op=ctx.overlap)
        grad_weight = grad.flatten(0, -2).T @ x.flatten(0, -2)
        if not ctx.sequence and sent is not None:
            sent.wait()
        return grad_x, grad_weight, None, None, None


def _cut(whole: Tensor, dim: int, group: dist.ProcessGroup) -> Tensor:
    return whole.detach().chunk(dist.get_world_size(group), dim)[dist.get_rank(group)].clone()


def _divides(name: str, size: int, group: dist.ProcessGroup) -> None:
    if size % dist.get_world_size(group):
        raise ValueError(f"{name} must be divisible by the {dist.get_world_size(group)} ranks, got {size}")
