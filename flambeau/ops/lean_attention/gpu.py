"""Decode attention with Triton: as many programs as the machine runs at once, each an equal range of key tiles.

Every program computes the schedule from the lengths on the device (so a CUDA graph can be replayed with other lengths).
Partial results go to scratch; the program that arrives last at an output tile's counter combines them in the order of
their keys and sets the counter back to zero. No program waits for another, so any number of them may be resident.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def _add(a, b):
    return a + b


@triton.jit
def _larger(a, b):
    return tl.where(a > b, a, b)


@triton.jit
def _exp2_difference(a, b):
    """2^(a - b), 0 where a is -inf, whatever b is."""
    return tl.where(a == float("-inf"), 0.0, tl.exp2(a - b))


@triton.jit
def _first_keys(lengths, starts, b, mask, queries, span, window, STARTS: tl.constexpr, WINDOW: tl.constexpr):
    """(first key, end) of rows b, clamped to the cache."""
    length = tl.load(lengths + b, mask=mask, other=0)
    length = tl.minimum(tl.maximum(length, 0), span)
    first = length * 0
    if STARTS:
        first = tl.minimum(tl.maximum(tl.load(starts + b, mask=mask, other=0), 0), length)
    if WINDOW:
        first = tl.minimum(tl.maximum(first, length - queries - window + 1), length)
    return first, length


@triton.jit
def _unit(u, total, units, start, tiles, PIECES: tl.constexpr):
    """Tiles [low, high) of work unit u; for pieces, of output tile u // PIECES, whose first tile is ``start``."""
    if PIECES == 0:
        return u * total // units, (u + 1) * total // units
    used = tl.maximum(tl.minimum(tiles, PIECES), 1)
    i = tl.minimum(u % PIECES, used)
    return start + i * tiles // used, start + tl.minimum(i + 1, used) * tiles // used


@triton.jit
def _units_of(t, start, tiles, total, units, PIECES: tl.constexpr):
    """First and last unit that has a segment of output tile t."""
    if PIECES == 0:
        return ((start + 1) * units - 1) // total, ((start + tiles) * units - 1) // total
    return t * PIECES, t * PIECES + tl.minimum(tiles, PIECES) - 1


@triton.jit
def _store(
    out, lse, sinks, o, m, l, b, h, queries, heads, dim,
    GROUP: tl.constexpr, M: tl.constexpr, D: tl.constexpr, SINKS: tl.constexpr,
):  # fmt: skip
    """Normalise a whole output tile. m is in units of log2."""
    row, d = tl.arange(0, M), tl.arange(0, D)
    head, query = h * GROUP + row // queries, row % queries
    valid = row < GROUP * queries
    if SINKS:  # one more key, of value zero
        sink = tl.load(sinks + head, mask=valid, other=0.0) * LOG2E
        top = tl.maximum(m, sink)
        shrink = _exp2_difference(m, top)
        l = l * shrink + tl.exp2(sink - top)
        o = o * shrink[:, None]
        m = top
    at = (b.to(tl.int64) * queries + query) * heads + head
    o = o / tl.where(l == 0, 1.0, l)[:, None]
    tl.store(out + at[:, None] * dim + d[None, :], o.to(out.dtype.element_ty), mask=valid[:, None] & (d < dim)[None, :])
    tl.store(lse + at, tl.where(l == 0, float("-inf"), m * LN2 + tl.log(l)), mask=valid)


@triton.jit
def _combine(
    scratch_o, scratch_ml, out, lse, sinks, b, h, from_unit, last_unit, queries, heads, dim,
    GROUP: tl.constexpr, M: tl.constexpr, D: tl.constexpr, SINKS: tl.constexpr,
):  # fmt: skip
    """Combine the segments of an output tile in the order of their keys, and store it."""
    row, d = tl.arange(0, M), tl.arange(0, D)
    o, m, l = tl.full((M, D), 0.0, tl.float32), tl.full((M,), float("-inf"), tl.float32), tl.full((M,), 0.0, tl.float32)
    for u in range(from_unit, last_unit + 1):
        slot = (2 * u + tl.where(u == from_unit, 1, 0)).to(tl.int64)
        sm = tl.load(scratch_ml + slot * 2 * M + row)
        sl = tl.load(scratch_ml + slot * 2 * M + M + row)
        so = tl.load(scratch_o + (slot * M + row)[:, None] * D + d[None, :])
        top = tl.maximum(m, sm)
        mine, theirs = _exp2_difference(m, top), _exp2_difference(sm, top)
        o = o * mine[:, None] + so * theirs[:, None]
        l = l * mine + sl * theirs
        m = top
    _store(out, lse, sinks, o, m, l, b, h, queries, heads, dim, GROUP, M, D, SINKS)


@triton.jit
def _segment(
    q, k, v, table, slopes, tail_mask, b, h, begin, end, length,
    q_batch, q_query, q_head, k_outer, k_head, k_key, v_outer, v_head, v_key,
    queries, heads, dim, page, blocks, window, scale, softcap,
    GROUP: tl.constexpr, M: tl.constexpr, D: tl.constexpr, N: tl.constexpr,
    PAGED: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, SLOPES: tl.constexpr, TAIL: tl.constexpr,
):  # fmt: skip
    """The softmax state over keys [begin, end) of row b, for all query rows of key/value head h."""
    row, d = tl.arange(0, M), tl.arange(0, D)
    head, query = h * GROUP + row // queries, row % queries
    valid, in_dim = row < GROUP * queries, d < dim
    position = length - queries + query
    b64 = b.to(tl.int64)
    from_q = q + b64 * q_batch + query * q_query + head * q_head
    qs = tl.load(from_q[:, None] + d[None, :], mask=valid[:, None] & in_dim[None, :], other=0.0)
    slope = tl.full((M,), 0.0, tl.float32)
    if SLOPES:
        slope = tl.load(slopes + b * heads + head, mask=valid, other=0.0)
    o, m, l = tl.full((M, D), 0.0, tl.float32), tl.full((M,), float("-inf"), tl.float32), tl.full((M,), 0.0, tl.float32)
    for low in range(begin, end, N):
        key = low + tl.arange(0, N)
        there = key < end
        if PAGED:
            outer = tl.load(table + b64 * blocks + key // page, mask=there, other=0).to(tl.int64)
            slot = (key % page).to(tl.int64)
        else:
            outer = b64
            slot = key.to(tl.int64)
        inside = there[:, None] & in_dim[None, :]
        ks = tl.load(k + (outer * k_outer + h * k_head + slot * k_key)[:, None] + d[None, :], mask=inside, other=0.0)
        s = tl.dot(qs, tl.trans(ks), input_precision="ieee") * scale
        if SOFTCAP:
            s = softcap * (2 / (1 + tl.exp2(s * (-2 * LOG2E) / softcap)) - 1)
        if SLOPES:
            s = s - slope[:, None] * (position[:, None] - key[None, :]).to(tl.float32)
        seen = there[None, :] & valid[:, None]
        if TAIL:
            tail = key - (length - queries)
            at = tail_mask + (b64 * queries + query)[:, None] * queries + tail[None, :]
            among = (tail >= 0)[None, :] & seen
            chosen = tl.load(at, mask=among, other=0) != 0
            seen = seen & (chosen | (tail < 0)[None, :]) & (position >= 0)[:, None]
        else:
            seen = seen & (key[None, :] <= position[:, None])
        if WINDOW:
            seen = seen & (key[None, :] > position[:, None] - window)
        s = tl.where(seen, s * LOG2E, float("-inf"))
        top = tl.maximum(m, tl.reduce(s, 1, _larger))
        shrink = _exp2_difference(m, top)
        p = _exp2_difference(s, top[:, None])
        l = l * shrink + tl.reduce(p, 1, _add)
        vs = tl.load(v + (outer * v_outer + h * v_head + slot * v_key)[:, None] + d[None, :], mask=inside, other=0.0)
        o = o * shrink[:, None] + tl.dot(p.to(vs.dtype), vs, input_precision="ieee")
        m = top
    return o, m, l


@triton.jit
def _decode(
    q, k, v, lengths, starts, table, slopes, sinks, tail_mask, out, lse, scratch_o, scratch_ml, arrived,
    q_batch, q_query, q_head, k_outer, k_head, k_key, v_outer, v_head, v_key,
    batch, queries, heads, kv_heads, dim, page, blocks, span, window, scale, softcap, tile, programs, least_tiles,
    GROUP: tl.constexpr, M: tl.constexpr, D: tl.constexpr, N: tl.constexpr, ROWS: tl.constexpr, PIECES: tl.constexpr,
    PAGED: tl.constexpr, STARTS: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, SLOPES: tl.constexpr,
    SINKS: tl.constexpr, TAIL: tl.constexpr, TWO_PASS: tl.constexpr,
):  # fmt: skip
    u = tl.program_id(0)
    rows = tl.arange(0, ROWS)
    first, length = _first_keys(lengths, starts, rows, rows < batch, queries, span, window, STARTS, WINDOW)
    tiles = ((length - first + tile - 1) // tile).to(tl.int32)  # of one head of each row
    ends = tl.associative_scan(tiles, 0, _add) * kv_heads
    total = tl.reduce(tiles, 0, _add) * kv_heads
    units = tl.minimum(programs, tl.maximum(total // least_tiles, 1))
    if PIECES == 0:
        low, high = _unit(u, total, units, 0, 0, PIECES)
        if u >= units:
            low, high = high, high
        # Rows without keys have no tile that a unit could meet.
        for t in range(u, batch * kv_heads, programs):
            _store_empty(tiles, rows, t, out, lse, sinks, queries, heads, kv_heads, dim, GROUP, M, D, SINKS)
    else:
        b = u // PIECES // kv_heads
        mine = tl.reduce(tl.where(rows == b, tiles, 0), 0, _add)
        begin = tl.reduce(tl.where(rows < b, tiles, 0), 0, _add) * kv_heads + u // PIECES % kv_heads * mine
        low, high = _unit(u, total, units, begin, mine, PIECES)
        if u % PIECES == 0:
            _store_empty(tiles, rows, u // PIECES, out, lse, sinks, queries, heads, kv_heads, dim, GROUP, M, D, SINKS)
    while low < high:
        b = tl.reduce(tl.where((ends <= low) & (rows < batch), 1, 0), 0, _add)
        mine = tl.reduce(tl.where(rows == b, tiles, 0), 0, _add)
        before = tl.reduce(tl.where(rows < b, tiles, 0), 0, _add) * kv_heads
        h = (low - before) // mine
        start = before + h * mine
        end = tl.minimum(high, start + mine)
        first_key, stop = _first_keys(lengths, starts, b, True, queries, span, window, STARTS, WINDOW)
        first_key, stop = first_key.to(tl.int32), stop.to(tl.int32)
        o, m, l = _segment(
            q, k, v, table, slopes, tail_mask, b, h,
            first_key + (low - start) * tile, tl.minimum(first_key + (end - start) * tile, stop), stop,
            q_batch, q_query, q_head, k_outer, k_head, k_key, v_outer, v_head, v_key,
            queries, heads, dim, page, blocks, window, scale, softcap,
            GROUP, M, D, N, PAGED, WINDOW, SOFTCAP, SLOPES, TAIL,
        )  # fmt: skip
        if end - low == mine:
            _store(out, lse, sinks, o, m, l, b, h, queries, heads, dim, GROUP, M, D, SINKS)
        else:
            row, d = tl.arange(0, M), tl.arange(0, D)
            slot = (2 * u + tl.where(low == start, 1, 0)).to(tl.int64)
            tl.store(scratch_o + (slot * M + row)[:, None] * D + d[None, :], o)
            tl.store(scratch_ml + slot * 2 * M + row, m)
            tl.store(scratch_ml + slot * 2 * M + M + row, l)
            if not TWO_PASS:
                t = b * kv_heads + h
                tl.debug_barrier()  # the stores of all threads come before this program's arrival
                from_unit, last_unit = _units_of(t, start, mine, total, units, PIECES)
                if tl.atomic_add(arrived + t, 1, sem="acq_rel") == last_unit - from_unit:
                    tl.debug_barrier()
                    _combine(
                        scratch_o, scratch_ml, out, lse, sinks, b, h, from_unit, last_unit, queries, heads, dim,
                        GROUP, M, D, SINKS,
                    )  # fmt: skip
                    tl.store(arrived + t, 0)
        low = end


@triton.jit
def _store_empty(
    tiles, rows, t, out, lse, sinks, queries, heads, kv_heads, dim,
    GROUP: tl.constexpr, M: tl.constexpr, D: tl.constexpr, SINKS: tl.constexpr,
):  # fmt: skip
    b = t // kv_heads
    if tl.reduce(tl.where(rows == b, tiles, 0), 0, _add) == 0:
        o, l = tl.full((M, D), 0.0, tl.float32), tl.full((M,), 0.0, tl.float32)
        m = tl.full((M,), float("-inf"), tl.float32)
        _store(out, lse, sinks, o, m, l, b, t % kv_heads, queries, heads, dim, GROUP, M, D, SINKS)


@triton.jit
def _second_pass(
    lengths, starts, sinks, out, lse, scratch_o, scratch_ml,
    batch, queries, heads, kv_heads, dim, span, window, tile, programs, least_tiles,
    GROUP: tl.constexpr, M: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr, PIECES: tl.constexpr,
    STARTS: tl.constexpr, WINDOW: tl.constexpr, SINKS: tl.constexpr,
):  # fmt: skip
    t = tl.program_id(0)
    b, h = t // kv_heads, t % kv_heads
    rows = tl.arange(0, ROWS)
    first, length = _first_keys(lengths, starts, rows, rows < batch, queries, span, window, STARTS, WINDOW)
    tiles = ((length - first + tile - 1) // tile).to(tl.int32)
    total = tl.reduce(tiles, 0, _add) * kv_heads
    units = tl.minimum(programs, tl.maximum(total // least_tiles, 1))
    mine = tl.reduce(tl.where(rows == b, tiles, 0), 0, _add)
    if mine > 0:
        start = tl.reduce(tl.where(rows < b, tiles, 0), 0, _add) * kv_heads + h * mine
        from_unit, last_unit = _units_of(t, start, mine, total, units, PIECES)
        if last_unit > from_unit:
            _combine(
                scratch_o, scratch_ml, out, lse, sinks, b, h, from_unit, last_unit, queries, heads, dim,
                GROUP, M, D, SINKS,
            )  # fmt: skip


def decode(
    q: Tensor, k: Tensor, v: Tensor, lengths: Tensor, block_table: Tensor | None, starts: Tensor | None,
    slopes: Tensor | None, sinks: Tensor | None, tail_mask: Tensor | None, out: Tensor, lse: Tensor, *, scale: float,
    window: int, softcap: float, tile: int, pieces: int, workers: int, two_pass: bool = False,
) -> Tensor:  # fmt: skip
    """Fill out [B,N,H,d] and lse [B,N,H]; arguments as ``cpu.decode`` takes them.

    Args:
        workers: programs of the equal division, as given; 0 starts one a multiprocessor, fewer for short contexts.

    Returns:
        The arrival counters, all zero again.
    """
    batch, queries, heads, dim = q.shape
    kv_heads, page = k.shape[1], k.shape[2]
    blocks = 1 if block_table is None else block_table.shape[1]
    rows, padded = max(16, triton.next_power_of_2(heads // kv_heads * queries)), max(16, triton.next_power_of_2(dim))
    processors = torch.cuda.get_device_properties(q.device).multi_processor_count if q.is_cuda else 1
    programs = workers or processors
    grid = pieces * batch * kv_heads if pieces else programs
    # Every program of a lowered number still has its slots.
    scratch_o = torch.empty(2 * grid, rows, padded, device=q.device)
    scratch_ml = torch.empty(2 * grid, 2, rows, device=q.device)
    arrived = torch.zeros(max(1, batch * kv_heads), dtype=torch.int32, device=q.device)
    if not batch:
        return arrived
    some = lambda x: lengths if x is None else x  # noqa: E731  a pointer that is never followed
    tail = some(None if tail_mask is None else tail_mask.view(torch.uint8))
    schedule = {"GROUP": heads // kv_heads, "M": rows, "D": padded, "ROWS": triton.next_power_of_2(batch)}
    schedule |= {"PIECES": pieces, "STARTS": starts is not None, "WINDOW": window > 0, "SINKS": sinks is not None}
    sizes = tile, programs, 1 if workers else 2
    _decode[(grid,)](
        q, k, v, lengths, some(starts), some(block_table), some(slopes), some(sinks), tail, out, lse, scratch_o,
        scratch_ml, arrived, *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], batch, queries, heads, kv_heads, dim,
        page, blocks, page * blocks, window, scale, softcap, *sizes, N=min(64, max(16, triton.next_power_of_2(tile))),
        PAGED=block_table is not None, SOFTCAP=softcap > 0, SLOPES=slopes is not None, TAIL=tail_mask is not None,
        TWO_PASS=two_pass, num_warps=4, num_stages=2 if padded > 128 else 3, **schedule,
    )  # fmt: skip
    if two_pass:
        _second_pass[(batch * kv_heads,)](
            lengths, some(starts), some(sinks), out, lse, scratch_o, scratch_ml, batch, queries, heads, kv_heads, dim,
            page * blocks, window, *sizes, **schedule,
        )  # fmt: skip
    return arrived
