"""Gathered attention on a GPU with Triton: queries, keys and values are read in place by their positions.

A program handles some slots of one chunk; the softmax is taken over blocks of columns as they come (Dao et al. 2022,
arXiv 2205.14135). Gradients are written per slot and added up per position outside, so programs never meet.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

SELF = tl.constexpr(-5e4)  # as in the reference


@triton.jit
def _larger(a, b):
    return tl.maximum(a, b)


@triton.jit
def _add(a, b):
    return a + b


@triton.jit
def _slots(positions, groups, chunk, at, SIZE, empty):
    """Positions and groups of a chunk's slots; `empty` is the group beyond its end."""
    inside = at < SIZE
    position = tl.load(positions + chunk * SIZE + at, mask=inside, other=0)
    return position, tl.load(groups + chunk * SIZE + at, mask=inside, other=empty)


@triton.jit
def _visible(
    row, row_group, i, column, column_group, j, WIDTH, reach, CAUSAL: tl.constexpr, REACH: tl.constexpr
):  # fmt: skip
    """Which pairs see each other; rows and columns come shaped to broadcast."""
    see = (row_group == column_group) & (row_group >= 0)
    if CAUSAL:
        see = see & (column <= row)
    if REACH:
        see = see & (tl.abs(i + WIDTH - j) <= reach)
    return see


@triton.jit
def _forward(
    Q, K, V, rows, columns, row_groups, column_groups, out, lse, T, S, C, W, U, reach, scale,
    CAUSAL: tl.constexpr, MASK_SELF: tl.constexpr, REACH: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    chunk = tl.program_id(0).to(tl.int64)
    head, d = chunk // C, tl.arange(0, D)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    row, row_group = _slots(rows, row_groups, chunk, i, W, -1)
    q = tl.load(Q + (head * T + row[:, None]) * D + d[None, :])
    highest = tl.full((BLOCK,), -float("inf"), tl.float32)
    total = tl.full((BLOCK,), 0.0, tl.float32)
    mixed = tl.full((BLOCK, D), 0.0, tl.float32)
    for start in range(0, U, BLOCK):
        j = start + tl.arange(0, BLOCK)
        column, column_group = _slots(columns, column_groups, chunk, j, U, -2)
        k = tl.load(K + (head * S + column[None, :]) * D + d[:, None])
        s = tl.dot(q, k, input_precision="ieee") * scale
        if MASK_SELF:
            s = tl.where(column[None, :] == row[:, None], SELF, s)
        see = _visible(
            row[:, None], row_group[:, None], i[:, None], column[None, :], column_group[None, :], j[None, :], W, reach,
            CAUSAL, REACH,
        )  # fmt: skip
        s = tl.where(see, s, -float("inf"))
        higher = tl.maximum(highest, tl.reduce(s, 1, _larger))
        base = tl.where(higher == -float("inf"), 0.0, higher)
        p = tl.where(see, tl.exp(s - base[:, None]), 0.0)
        keep = tl.where(highest == -float("inf"), 0.0, tl.exp(highest - base))
        v = tl.load(V + (head * S + column[:, None]) * D + d[None, :])
        total = total * keep + tl.reduce(p, 1, _add)
        mixed = mixed * keep[:, None] + tl.dot(p.to(v.dtype), v, input_precision="ieee")
        highest = higher
    some = total > 0
    mixed = mixed / tl.where(some, total, 1.0)[:, None]
    # Where nothing is visible the normaliser is infinite, so that the backward finds weights of zero.
    normaliser = tl.where(some, highest + tl.log(tl.where(some, total, 1.0)), float("inf"))
    inside = i < W
    tl.store(out + (chunk * W + i[:, None]) * D + d[None, :], mixed, mask=inside[:, None])
    tl.store(lse + chunk * W + i, normaliser, mask=inside)


@triton.jit
def _backward_rows(
    Q, K, V, rows, columns, row_groups, column_groups, lse, dout, delta, dq, T, S, C, W, U, reach, scale,
    CAUSAL: tl.constexpr, MASK_SELF: tl.constexpr, REACH: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    chunk = tl.program_id(0).to(tl.int64)
    head, d = chunk // C, tl.arange(0, D)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = i < W
    row, row_group = _slots(rows, row_groups, chunk, i, W, -1)
    q = tl.load(Q + (head * T + row[:, None]) * D + d[None, :])
    do = tl.load(dout + (chunk * W + i[:, None]) * D + d[None, :], mask=inside[:, None], other=0.0).to(q.dtype)
    normaliser = tl.load(lse + chunk * W + i, mask=inside, other=float("inf"))
    own = tl.load(delta + chunk * W + i, mask=inside, other=0.0)
    gradient = tl.full((BLOCK, D), 0.0, tl.float32)
    for start in range(0, U, BLOCK):
        j = start + tl.arange(0, BLOCK)
        column, column_group = _slots(columns, column_groups, chunk, j, U, -2)
        place = (head * S + column[None, :]) * D + d[:, None]
        s = tl.dot(q, tl.load(K + place), input_precision="ieee") * scale
        same = column[None, :] == row[:, None]
        if MASK_SELF:
            s = tl.where(same, SELF, s)
        see = _visible(
            row[:, None], row_group[:, None], i[:, None], column[None, :], column_group[None, :], j[None, :], W, reach,
            CAUSAL, REACH,
        )  # fmt: skip
        p = tl.exp(tl.where(see, s, -float("inf")) - normaliser[:, None])
        ds = p * (tl.dot(do, tl.load(V + place), input_precision="ieee") - own[:, None]) * scale
        if MASK_SELF:
            ds = tl.where(same, 0.0, ds)
        k = tl.load(K + (head * S + column[:, None]) * D + d[None, :])
        gradient += tl.dot(ds.to(k.dtype), k, input_precision="ieee")
    tl.store(dq + (chunk * W + i[:, None]) * D + d[None, :], gradient, mask=inside[:, None])


@triton.jit
def _backward_columns(
    Q, K, V, rows, columns, row_groups, column_groups, lse, dout, delta, dk, dv, T, S, C, W, U, reach, scale,
    CAUSAL: tl.constexpr, MASK_SELF: tl.constexpr, REACH: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    chunk = tl.program_id(0).to(tl.int64)
    head, d = chunk // C, tl.arange(0, D)
    j = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = j < U
    column, column_group = _slots(columns, column_groups, chunk, j, U, -2)
    k = tl.load(K + (head * S + column[:, None]) * D + d[None, :])
    v = tl.load(V + (head * S + column[:, None]) * D + d[None, :])
    key_gradient = tl.full((BLOCK, D), 0.0, tl.float32)
    value_gradient = tl.full((BLOCK, D), 0.0, tl.float32)
    for start in range(0, W, BLOCK):
        i = start + tl.arange(0, BLOCK)
        held = i < W
        row, row_group = _slots(rows, row_groups, chunk, i, W, -1)
        q = tl.load(Q + (head * T + row[None, :]) * D + d[:, None])
        s = tl.dot(k, q, input_precision="ieee") * scale  # [columns, rows]
        same = column[:, None] == row[None, :]
        if MASK_SELF:
            s = tl.where(same, SELF, s)
        see = _visible(
            row[None, :], row_group[None, :], i[None, :], column[:, None], column_group[:, None], j[:, None], W, reach,
            CAUSAL, REACH,
        )  # fmt: skip
        normaliser = tl.load(lse + chunk * W + i, mask=held, other=float("inf"))
        own = tl.load(delta + chunk * W + i, mask=held, other=0.0)
        p = tl.exp(tl.where(see, s, -float("inf")) - normaliser[None, :])
        place = chunk * W + i
        do = tl.load(dout + place[:, None] * D + d[None, :], mask=held[:, None], other=0.0).to(v.dtype)
        do_t = tl.load(dout + place[None, :] * D + d[:, None], mask=held[None, :], other=0.0).to(v.dtype)
        value_gradient += tl.dot(p.to(v.dtype), do, input_precision="ieee")
        ds = p * (tl.dot(v, do_t, input_precision="ieee") - own[None, :]) * scale
        if MASK_SELF:
            ds = tl.where(same, 0.0, ds)
        q_rows = tl.load(Q + (head * T + row[:, None]) * D + d[None, :])
        key_gradient += tl.dot(ds.to(q_rows.dtype), q_rows, input_precision="ieee")
    place = (chunk * U + j[:, None]) * D + d[None, :]
    tl.store(dk + place, key_gradient, mask=inside[:, None])
    tl.store(dv + place, value_gradient, mask=inside[:, None])


def forward(
    q: Tensor, k: Tensor, v: Tensor, index: tuple[Tensor, ...], causal: bool, mask_self: bool, reach: int, scale: float
) -> tuple[Tensor, Tensor]:
    """Outputs per slot [B, H, C, W, D] (float32) and the log of their normalisers [B, H, C, W]. All contiguous; a
    negative reach is none."""
    sizes, constants, chunks = _launch(q, k, index, causal, mask_self, reach)
    shape = index[0].shape
    out = torch.empty(*shape, q.shape[3], dtype=torch.float32, device=q.device)
    lse = torch.empty(shape, dtype=torch.float32, device=q.device)
    grid = (chunks, triton.cdiv(shape[3], constants["BLOCK"]))
    _forward[grid](q, k, v, *index, out, lse, *sizes, reach, scale, **constants)
    return out, lse


def backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, index: tuple[Tensor, ...], out: Tensor, lse: Tensor,
    causal: bool, mask_self: bool, reach: int, scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients per slot, float32: of queries [B, H, C, W, D], keys and values [B, H, C, U, D]."""
    sizes, constants, chunks = _launch(q, k, index, causal, mask_self, reach)
    delta = (dout * out).sum(-1)
    dq = torch.empty_like(out)
    dk, dv = (torch.empty(*index[1].shape, q.shape[3], dtype=torch.float32, device=q.device) for _ in range(2))
    block, given = constants["BLOCK"], (q, k, v, *index, lse, dout, delta)
    by_rows, by_columns = (triton.cdiv(part.shape[3], block) for part in index[:2])
    _backward_rows[chunks, by_rows](*given, dq, *sizes, reach, scale, **constants)
    _backward_columns[chunks, by_columns](*given, dk, dv, *sizes, reach, scale, **constants)
    return dq, dk, dv


def _launch(q: Tensor, k: Tensor, index: tuple[Tensor, ...], causal: bool, mask_self: bool, reach: int):
    batch, heads, chunks, width = index[0].shape
    sizes = (q.shape[2], k.shape[2], chunks, width, index[1].shape[3])
    flags = {"CAUSAL": causal, "MASK_SELF": mask_self, "REACH": reach >= 0}
    block = 64 if q.shape[3] <= 64 else 32  # tiles of queries, keys, values and their products fit on the chip
    return (
        sizes,
        flags | {"D": q.shape[3], "BLOCK": min(block, max(16, triton.next_power_of_2(width)))},
        (batch * heads * chunks),
    )
