"""Linformer: attention to k learned combinations of the keys."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor


def linformer_attention(
    queries: Float[Tensor, "batch heads chunk head_dim"],
    keys: Float[Tensor, "batch kv_heads chunk head_dim"],
    values: Float[Tensor, "batch kv_heads chunk head_dim"],
    key_projection: Float[Tensor, "rank length"],
    value_projection: Float[Tensor, "rank length"],
    *,
    group: dist.ProcessGroup | None = None,
    positions: Int64[Tensor, " chunk"] | None = None,
    key_mask: Bool[Tensor, "batch chunk"] | None = None,
    dropout_p: float = 0.0,
) -> Float[Tensor, "batch heads chunk head_dim"]:
    """softmax(Q (E K)' / sqrt(head_dim)) (F V) (Wang et al. 2020, arXiv 2006.04768, equation 7).

    With a `group`, each rank holds a part of the tokens and all of E and F. It projects its own keys and values, and
    one sum over the ranks, of size [rank, head_dim] for each head whatever the length, completes the projection (Li et
    al. 2023, arXiv 2105.13120, section 3.2.3). The gradients of E and F are those of this rank's tokens.

    positions: of the tokens in the whole sequence, by default from 0, or this rank's part. Tokens behind the end of
    the projections are padding: they are not attended to. key_mask: True for tokens that may be.
    Raises ValueError for projections of different shapes, or for more tokens than positions.
    """
    if key_projection.shape != value_projection.shape or key_projection.ndim != 2:
        raise ValueError(
            "key_projection and value_projection must both be [rank, length], got "
            f"{list(key_projection.shape)} and {list(value_projection.shape)}"
        )
    chunk, length = keys.shape[2], key_projection.shape[1]
    if positions is None:
        first = 0 if group is None else group.rank() * chunk
        if group is None and chunk > length:
            raise ValueError(f"keys have {chunk} tokens, the projection is of {length}")
        positions = torch.arange(first, first + chunk)
    elif positions.shape != (chunk,):
        raise ValueError(f"positions must be {chunk} integers, got shape {list(positions.shape)}")
    positions = positions.to(keys.device)
    if key_mask is not None:
        visible = key_mask[:, None, :, None]
        keys, values = keys * visible, values * visible
    projected = _ProjectOverRanks.apply(
        keys,
        values,
        _columns(key_projection, positions).to(keys.dtype),
        _columns(value_projection, positions).to(keys.dtype),
        group if group is not None and group.size() > 1 else None,
    )
    return F.scaled_dot_product_attention(
        queries, *projected.unbind(), dropout_p=dropout_p, enable_gqa=queries.shape[1] != keys.shape[1]
    )


def _columns(projection: Tensor, positions: Tensor) -> Tensor:
    """Those of the tokens at `positions`, 0 for padding; a view of the projection where they are neighbours."""
    length, first = projection.shape[1], int(positions[0])
    if int(positions[-1]) < length and bool((positions.diff() == 1).all()):
        return projection[:, first : first + len(positions)]
    return projection.index_select(1, positions.clamp(max=length - 1)) * (positions < length)


class _ProjectOverRanks(torch.autograd.Function):
    """E K and F V, stacked, summed over the ranks. Each rank uses all of them, so their gradients are summed as well.

    Saves its inputs as they are, where a matrix product would keep contiguous copies of keys and values.
    """

    @staticmethod
    def forward(
        ctx: Any,
        keys: Tensor,
        values: Tensor,
        key_columns: Tensor,
        value_columns: Tensor,
        group: dist.ProcessGroup | None,
    ) -> Tensor:
        ctx.group = group
        ctx.save_for_backward(keys, values, key_columns, value_columns)
        projected = torch.stack((key_columns @ keys, value_columns @ values))
        if group is not None:
            dist.all_reduce(projected, group=group)
        return projected

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        keys, values, key_columns, value_columns = ctx.saved_tensors
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        if ctx.group is not None:
            dist.all_reduce(gradient, group=ctx.group)
        of_keys, of_values = gradient.unbind()
        return (
            key_columns.mT @ of_keys,
            value_columns.mT @ of_values,
            (of_keys @ keys.mT).sum((0, 1)),
            (of_values @ values.mT).sum((0, 1)),
            None,
        )
