"""FlashRNN on a GPU with Triton: one program runs the whole sequence of one head and 16 rows of the batch.

R and the states stay on the chip for all steps (the paper's fused schedule), programs never meet, so no
grid-wide barrier is needed; in exchange the head size is a power of two up to 128. Same layouts as ``cpu.cpp``.
"""

import triton
import triton.language as tl
from torch import Tensor

ROWS = 16
LSTM, SLSTM, GRU, ELMAN = (tl.constexpr(i) for i in range(4))
NUMBERS = {"lstm": 0, "slstm": 1, "gru": 2, "elman": 3}


@triton.jit
def _sigmoid(x):
    return 1 / (1 + tl.exp(-x))


@triton.jit
def _tanh(x):
    return 2 / (1 + tl.exp(-2 * x)) - 1


@triton.jit
def _log_sigmoid(x):
    return tl.minimum(x, 0.0) - tl.log(1 + tl.exp(-tl.abs(x)))


@triton.jit
def _tile(R, gate, n, row, col, N, D: tl.constexpr):
    return tl.load(R + ((gate * N + n) * D + row) * D + col)


@triton.jit
def _forward(
    Wx, R, bias, initial, states, saved, B, T, N, clip,
    CELL: tl.constexpr, GATES: tl.constexpr, INPUTS: tl.constexpr, SAVED: tl.constexpr,
    D: tl.constexpr, ROWS: tl.constexpr, CLIP: tl.constexpr,
):  # fmt: skip
    n, d = tl.program_id(0), tl.arange(0, D)
    rows = (tl.program_id(1) * ROWS + tl.arange(0, ROWS))[:, None]
    valid = rows < B
    unit, ND = (n * D + d)[None, :], N * D
    k, out = d[:, None], d[None, :]
    r0 = _tile(R, 0, n, out, k, N, D)  # [in, out]
    b0 = tl.load(bias + unit)
    h = tl.load(initial + rows * ND + unit, mask=valid, other=0.0)
    if CELL != ELMAN:
        r1 = _tile(R, 1, n, out, k, N, D)
        r2 = _tile(R, 2, n, out, k, N, D)
        b1, b2, b3 = tl.load(bias + ND + unit), tl.load(bias + 2 * ND + unit), tl.load(bias + 3 * ND + unit)
    if CELL == LSTM or CELL == SLSTM:
        r3 = _tile(R, 3, n, out, k, N, D)
        c = tl.load(initial + (B + rows) * ND + unit, mask=valid, other=0.0)
    if CELL == SLSTM:
        norm = tl.load(initial + (2 * B + rows) * ND + unit, mask=valid, other=0.0)
        m = tl.load(initial + (3 * B + rows) * ND + unit, mask=valid, other=0.0)
    for t in range(T):
        at = rows.to(tl.int64) * T + t
        x = Wx + at * (INPUTS * ND) + unit
        keep = saved + at * (SAVED * ND) + unit
        to = states + at * ND + unit
        stride = tl.cast(B, tl.int64) * T * ND
        hr = h.to(r0.dtype)
        a0 = b0 + tl.dot(hr, r0, input_precision="ieee")
        if CELL != ELMAN:
            a1 = b1 + tl.dot(hr, r1, input_precision="ieee")
            a2 = b2 + tl.dot(hr, r2, input_precision="ieee")
        if CELL == GRU:
            r = _sigmoid(a1 + tl.load(x, mask=valid, other=0.0).to(tl.float32))
            z = _sigmoid(a2 + tl.load(x + ND, mask=valid, other=0.0).to(tl.float32))
            cand = _tanh(b3 + tl.load(x + 2 * ND, mask=valid, other=0.0).to(tl.float32) + r * a0)
            h = cand + z * (h - cand)
            s0, s1, s2, s3 = a0, r, z, cand
        elif CELL == ELMAN:
            h = _tanh(a0 + tl.load(x, mask=valid, other=0.0).to(tl.float32))
        else:
            i = a0 + tl.load(x, mask=valid, other=0.0).to(tl.float32)
            f = a1 + tl.load(x + ND, mask=valid, other=0.0).to(tl.float32)
            z = _tanh(a2 + tl.load(x + 2 * ND, mask=valid, other=0.0).to(tl.float32))
            o = b3 + tl.dot(hr, r3, input_precision="ieee") + tl.load(x + 3 * ND, mask=valid, other=0.0).to(tl.float32)
            o = _sigmoid(o)
            if CELL == LSTM:
                i, f = _sigmoid(i), _sigmoid(f)
                c = f * c + i * z
                h = o * _tanh(c)
                s0, s1, s2, s3 = i, f, z, o
            else:
                s0, s1, s2, s3 = i, f, z, o
                log_f = _log_sigmoid(f) + m
                empty = norm == 0
                m = tl.where(empty, i, tl.maximum(log_f, i))
                i, f = tl.exp(i - m), tl.where(empty, 0.0, tl.exp(tl.where(empty, 0.0, log_f - m)))
                c = f * c + i * z
                norm = tl.maximum(f * norm + i, 1.0)
                h = o * (c / norm)
                tl.store(to + 2 * stride, norm, mask=valid)
                tl.store(to + 3 * stride, m, mask=valid)
            tl.store(to + stride, c, mask=valid)
        if CLIP:
            h = tl.minimum(tl.maximum(h, -clip), clip)
        tl.store(to, h, mask=valid)
        if SAVED > 0:
            tl.store(keep, s0, mask=valid)
            tl.store(keep + ND, s1, mask=valid)
            tl.store(keep + 2 * ND, s2, mask=valid)
            tl.store(keep + 3 * ND, s3, mask=valid)


@triton.jit
def _backward(
    R, initial, states, saved, dstates, delta, dinitial, B, T, N, clip, recurrent_clip,
    CELL: tl.constexpr, GATES: tl.constexpr, SAVED: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr,
    CLIP: tl.constexpr, RECURRENT_CLIP: tl.constexpr, CUT: tl.constexpr,
):  # fmt: skip
    n, d = tl.program_id(0), tl.arange(0, D)
    rows = (tl.program_id(1) * ROWS + tl.arange(0, ROWS))[:, None]
    valid = rows < B
    unit, ND = (n * D + d)[None, :], N * D
    out, k = d[:, None], d[None, :]
    r0 = _tile(R, 0, n, out, k, N, D)  # [out, in]
    if CELL != ELMAN:
        r1 = _tile(R, 1, n, out, k, N, D)
        r2 = _tile(R, 2, n, out, k, N, D)
    if CELL == LSTM or CELL == SLSTM:
        r3 = _tile(R, 3, n, out, k, N, D)
    dh = tl.full((ROWS, D), 0.0, tl.float32)  # what flows to the previous step's h, through R and outside it
    dc = tl.full((ROWS, D), 0.0, tl.float32)
    dn = tl.full((ROWS, D), 0.0, tl.float32)
    stride = tl.cast(B, tl.int64) * T * ND
    for step in range(T):
        t = T - 1 - step
        at = rows.to(tl.int64) * T + t
        to = states + at * ND + unit
        before = tl.where(t > 0, to - ND, initial + rows * ND + unit)
        behind = tl.where(t > 0, stride, B * ND)
        keep = saved + at * (SAVED * ND) + unit
        grad = dstates + at * ND + unit
        dh += tl.load(grad, mask=valid, other=0.0)
        h = tl.load(to, mask=valid, other=0.0)
        if CLIP:
            dh = tl.where(tl.abs(h) < clip, dh, 0.0)
        direct = tl.full((ROWS, D), 0.0, tl.float32)
        if CELL == ELMAN:
            d0 = dh * (1 - h * h)
        else:
            s0 = tl.load(keep, mask=valid, other=0.0)
            s1 = tl.load(keep + ND, mask=valid, other=0.0)
            s2 = tl.load(keep + 2 * ND, mask=valid, other=0.0)
            s3 = tl.load(keep + 3 * ND, mask=valid, other=0.0)
        if CELL == GRU:
            h_prev = tl.load(before, mask=valid, other=0.0)
            d3 = dh * (1 - s2) * (1 - s3 * s3)
            d2 = dh * (h_prev - s3) * s2 * (1 - s2)
            d1 = d3 * s0 * s1 * (1 - s1)
            d0 = d3 * s1
            direct = dh * s2
        if CELL == LSTM or CELL == SLSTM:
            c = tl.load(to + stride, mask=valid, other=0.0)
            c_prev = tl.load(before + behind, mask=valid, other=0.0)
            dc += tl.load(grad + stride, mask=valid, other=0.0)
        if CELL == LSTM:
            tc = _tanh(c)
            dc += dh * s3 * (1 - tc * tc)
            d0 = dc * s2 * s0 * (1 - s0)
            d1 = dc * c_prev * s1 * (1 - s1)
            d2 = dc * s0 * (1 - s2 * s2)
            d3 = dh * tc * s3 * (1 - s3)
            dc = dc * s1
        if CELL == SLSTM:
            norm = tl.load(to + 2 * stride, mask=valid, other=1.0)
            m = tl.load(to + 3 * stride, mask=valid, other=0.0)
            n_prev = tl.load(before + 2 * behind, mask=valid, other=0.0)
            m_prev = tl.load(before + 3 * behind, mask=valid, other=0.0)
            empty = n_prev == 0
            i = tl.exp(s0 - m)
            f = tl.where(empty, 0.0, tl.exp(tl.where(empty, 0.0, _log_sigmoid(s1) + m_prev - m)))
            dc += dh * s3 / norm
            dn += tl.load(grad + 2 * stride, mask=valid, other=0.0) - dh * s3 * c / (norm * norm)
            dn = tl.where(f * n_prev + i >= 1, dn, 0.0)
            d0 = (dc * s2 + dn) * i
            d1 = (dc * c_prev + dn * n_prev) * f * _sigmoid(-s1)
            d2 = dc * i * (1 - s2 * s2)
            d3 = dh * (c / norm) * s3 * (1 - s3)
            dc = dc * f
            dn = dn * f
        into = delta + at * (GATES * ND) + unit
        tl.store(into, d0, mask=valid)
        dh = direct
        if CELL != ELMAN:
            tl.store(into + ND, d1, mask=valid)
            tl.store(into + 2 * ND, d2, mask=valid)
            tl.store(into + 3 * ND, d3, mask=valid)
        if not CUT:
            through = tl.dot(d0.to(r0.dtype), r0, input_precision="ieee")
            if CELL != ELMAN:
                through += tl.dot(d1.to(r0.dtype), r1, input_precision="ieee")
                through += tl.dot(d2.to(r0.dtype), r2, input_precision="ieee")
            if CELL == LSTM or CELL == SLSTM:
                through += tl.dot(d3.to(r0.dtype), r3, input_precision="ieee")
            if RECURRENT_CLIP:
                through = tl.minimum(tl.maximum(through, -recurrent_clip), recurrent_clip)
            dh += through
    tl.store(dinitial + rows * ND + unit, dh, mask=valid)
    if CELL == LSTM or CELL == SLSTM:
        tl.store(dinitial + (B + rows) * ND + unit, dc, mask=valid)
    if CELL == SLSTM:
        tl.store(dinitial + (2 * B + rows) * ND + unit, dn, mask=valid)


def forward(
    Wx: Tensor, R: Tensor, b: Tensor, initial: Tensor, states: Tensor, saved: Tensor, function: str, clip: float
) -> None:
    """Fill states [S,B,T,N,D] and, unless it is empty, saved [B,T,SAVED,N,D]; every tensor is contiguous."""
    batch, time, inputs, heads, dim = Wx.shape
    _forward[(heads, triton.cdiv(batch, ROWS))](
        Wx, R, b, initial, states, saved, batch, time, heads, clip,
        CELL=NUMBERS[function], GATES=b.shape[0], INPUTS=inputs, SAVED=saved.shape[2] if saved.numel() else 0,
        D=dim, ROWS=ROWS, CLIP=clip > 0, num_stages=1,
    )  # fmt: skip


def backward(
    dstates: Tensor, R: Tensor, initial: Tensor, states: Tensor, saved: Tensor, delta: Tensor, dinitial: Tensor,
    function: str, recurrent_clip: float, cut: bool, clip: float,
) -> None:  # fmt: skip
    """Fill delta [B,T,G,N,D] and dinitial [S,B,N,D] (zero on entry); every tensor is contiguous."""
    _, batch, time, heads, dim = states.shape
    _backward[(heads, triton.cdiv(batch, ROWS))](
        R, initial, states, saved, dstates, delta, dinitial, batch, time, heads, clip, recurrent_clip,
        CELL=NUMBERS[function], GATES=delta.shape[2], SAVED=saved.shape[2], D=dim, ROWS=ROWS,
        CLIP=clip > 0, RECURRENT_CLIP=recurrent_clip > 0, CUT=cut, num_stages=1,
    )  # fmt: skip
