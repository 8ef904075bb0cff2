"""Where the tokens of a group-parallel model sit in its cache, and what each may look at."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from flambeau.nn.order import Order


def group_mask(order: Order, conditions: int, queries: bool = False) -> Bool[Tensor, "slots slots"]:
    """True where a row may look at a column.

    Slots are the condition tokens, then the cells in raster order, then (with `queries`) one query a cell. Conditions
    are causal among themselves and see nothing else; a cell sees all conditions, its own group and earlier ones; a
    query sees the conditions, the cells of earlier groups and itself.
    """
    cells = math.prod(order.grid)
    slots = conditions + cells * (2 if queries else 1)
    mask = torch.zeros(slots, slots, dtype=torch.bool)
    mask[:, :conditions] = True
    mask[:conditions, :conditions] = torch.ones(conditions, conditions, dtype=torch.bool).tril()
    content = slice(conditions, conditions + cells)
    mask[content, content] = order.mask()
    if queries:
        step = order.step_of
        mask[conditions + cells :, content] = step[:, None] > step
        mask[conditions + cells :, conditions + cells :] = torch.eye(cells, dtype=torch.bool)
    return mask


def hide_padding(
    mask: Bool[Tensor, "rows slots"], visible: Bool[Tensor, "batch conditions"] | None, rows: Int[Tensor, " rows"]
) -> Bool[Tensor, "batch rows slots"] | Bool[Tensor, "rows slots"]:
    """`mask` with padded condition tokens hidden, but for themselves: a row that sees nothing would become NaN.

    visible: False on padding, or None. rows: slot of each row of the mask.
    """
    if visible is None:
        return mask
    hidden = torch.zeros(len(visible), mask.shape[1], dtype=torch.bool, device=mask.device)
    hidden[:, : visible.shape[1]] = ~visible.to(mask.device)
    own = rows[:, None].to(mask.device) == torch.arange(mask.shape[1], device=mask.device)
    return (mask & ~hidden[:, None]) | own
