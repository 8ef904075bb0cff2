"""The definition of gathered attention, in PyTorch."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

SELF = -5e4  # the logit of a masked self: chosen only where nothing else is visible (Reformer, arXiv 2001.04451)


def visible_pairs(
    rows: Tensor, columns: Tensor, row_groups: Tensor, column_groups: Tensor, causal: bool, reach: int | None
) -> Tensor:
    """True where a slot's query sees a slot's key, [batch, heads, chunks, row slots, column slots]."""
    visible = (row_groups[..., :, None] == column_groups[..., None, :]) & (row_groups >= 0)[..., :, None]
    if causal:
        visible = visible & (columns[..., None, :] <= rows[..., :, None])
    if reach is not None:
        width, span = rows.shape[-1], columns.shape[-1]
        # With look-back the row slots are the last `width` of the first 2 * width column slots.
        distance = torch.arange(width, device=rows.device)[:, None] + width - torch.arange(span, device=rows.device)
        visible = visible & (distance.abs() <= reach)
    return visible


def gathered_attention_reference(
    queries: Float[Tensor, "batch heads time dim"],
    keys: Float[Tensor, "batch heads keytime dim"],
    values: Float[Tensor, "batch heads keytime value_dim"],
    rows: Int[Tensor, "batch heads chunks width"],
    columns: Int[Tensor, "batch heads chunks span"],
    row_groups: Int[Tensor, "batch heads chunks width"],
    column_groups: Int[Tensor, "batch heads chunks span"],
    causal: bool,
    mask_self: bool,
    reach: int | None,
    scale: float,
    bias: Float[Tensor, "heads width span"] | None = None,
) -> Float[Tensor, "batch heads chunks width value_dim"]:
    visible = visible_pairs(rows, columns, row_groups, column_groups, causal, reach)
    logits = (take(queries, rows) * scale) @ take(keys, columns).mT
    if bias is not None:
        logits = logits + bias[:, None]
    if mask_self:
        logits = logits.masked_fill(columns[..., None, :] == rows[..., :, None], SELF)
    logits = logits.masked_fill(~visible, float("-inf"))
    highest = logits.detach().amax(-1, keepdim=True).clamp(min=torch.finfo(logits.dtype).min)
    weights = (logits - highest).exp()
    # The normaliser is summed by the same product, in the order of the slots: a pair that is not visible then adds an
    # exact zero, and where a chunk begins changes no bit of the result.
    gathered = take(values, columns)
    summed = weights @ torch.cat([gathered, torch.ones_like(gathered[..., :1])], -1)
    return summed[..., :-1] / summed[..., -1:].clamp(min=torch.finfo(logits.dtype).tiny)


def take(x: Float[Tensor, "batch heads time dim"], index: Int[Tensor, "batch heads chunks slots"]) -> Tensor:
    """Rows of x, [batch, heads, chunks, slots, dim]."""
    flat = index.flatten(2)[..., None].expand(-1, -1, -1, x.shape[-1])
    return x.gather(2, flat).unflatten(2, index.shape[2:])
