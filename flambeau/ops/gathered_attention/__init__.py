"""Attention inside chunks of gathered queries and keys: the inner loop of routing, LSH and random routing."""

from __future__ import annotations

import functools
import warnings
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from flambeau.ops.gathered_attention import operators
from flambeau.ops.gathered_attention.reference import gathered_attention_reference

__all__ = ["gathered_attention"]


def gathered_attention(
    queries: Float[Tensor, "batch heads time dim"],
    keys: Float[Tensor, "batch heads keytime dim"],
    values: Float[Tensor, "batch heads keytime value_dim"],
    rows: Int[Tensor, "batch heads chunks width"],
    columns: Int[Tensor, "batch heads chunks span"],
    row_groups: Int[Tensor, "batch heads chunks width"],
    column_groups: Int[Tensor, "batch heads chunks span"],
    *,
    causal: bool = False,
    mask_self: bool = False,
    reach: int | None = None,
    scale: float | None = None,
    bias: Float[Tensor, "heads width span"] | None = None,
    backend: Literal["auto", "reference", "triton"] = "auto",
) -> Float[Tensor, "batch heads chunks width value_dim"]:
    """Softmax attention of the queries at `rows` over the keys at `columns`, chunk by chunk.

    A query sees a key of its chunk when their groups are equal and not negative; a negative group marks an empty slot,
    whose output is 0, as is that of a query that sees nothing.

    Args:
        rows, columns: original positions in each chunk.
        row_groups, column_groups: group of each slot.
        causal: a query sees no key of a later *position*.
        mask_self: a query takes the key of its own position only if it sees no other.
        reach: furthest slot distance, where the columns begin `width` slots before the rows; None is any.
        scale: of the logits; 1 / sqrt(dim) if None.
        bias: added to the logits, by slots.
        backend: "triton" reads queries, keys and values in place and keeps no weights for the backward; "auto" takes it
            on a GPU wherever it can run this.

    Raises:
        ValueError: an unknown backend, or one that cannot run this.
    """
    if backend not in ("auto", "reference", "triton"):
        raise ValueError(f"backend must be auto, reference or triton, got {backend!r}")
    scale = queries.shape[-1] ** -0.5 if scale is None else scale
    index = (rows, columns, row_groups, column_groups)
    if backend == "triton" or (backend == "auto" and queries.is_cuda):
        if torch.is_autocast_enabled(queries.device.type):
            kind = torch.get_autocast_dtype(queries.device.type)
            queries, keys, values = (x.to(kind) for x in (queries, keys, values))
        obstacle = operators.obstacle(queries, values, bias)
        if obstacle is None:
            limit = -1 if reach is None else reach
            y, _ = operators.gathered_forward(queries, keys, values, *index, causal, mask_self, limit, scale)
            return y.to(values.dtype)
        if backend == "triton":
            raise ValueError(f"backend 'triton' cannot run this: {obstacle}")
        _warn_once(obstacle)
    return gathered_attention_reference(queries, keys, values, *index, causal, mask_self, reach, scale, bias)


@functools.cache
def _warn_once(obstacle: str) -> None:
    warnings.warn(f"gathered_attention: using the PyTorch reference, Triton cannot run this: {obstacle}", stacklevel=3)
