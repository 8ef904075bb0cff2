"""The Triton module of an expression's cell: the kernels of ``gpu.py`` with one line a gate, state and operation.

It is written from the cell's operations alone, so no text of the user enters, and kept in the cache folder under the
hash of its text, because Triton reads the source of its kernels from a file.
"""

import functools
import hashlib
from pathlib import Path

from flambeau.files import write_bytes
from flambeau.ops import build
from flambeau.ops.flashrnn.expression import Program, defined_cell
from flambeau.ops.flashrnn.generated import kept, lines, plan

# One stage: buffers for loads ahead of time would take the shared memory that large heads need for R.
TEMPLATE = """import triton
import triton.language as tl

ROWS = 16


@triton.jit
def sigmoid(x):
    return 1 / (1 + tl.exp(-x))


@triton.jit
def tanh(x):
    return 2 / (1 + tl.exp(-2 * x)) - 1


@triton.jit
def log_sigmoid(x):
    return tl.minimum(x, 0.0) - tl.log(1 + tl.exp(-tl.abs(x)))


@triton.jit
def negative(x):
    return -x


@triton.jit
def relu(x):
    return tl.where(x <= 0, 0.0, x)


@triton.jit
def maximum(a, b):
    return tl.where(a >= b, a, tl.where(b >= a, b, a + b))


@triton.jit
def minimum(a, b):
    return tl.where(a <= b, a, tl.where(b <= a, b, a + b))


@triton.jit
def where_positive(a, d):
    return tl.where(a > 0, d, 0.0)


@triton.jit
def share(a, b, d):
    return tl.where(a > b, d, tl.where(a == b, d * 0.5, 0.0))


@triton.jit
def tile(R, gate, n, row, col, N, D: tl.constexpr):
    return tl.load(R + ((gate * N + n) * D + row) * D + col)


@triton.jit
def forward_kernel(
    Wx, R, bias, initial, states, saved, B, T, N, clip,
    D: tl.constexpr, ROWS: tl.constexpr, CLIP: tl.constexpr, TRAIN: tl.constexpr,
):
    n, d = tl.program_id(0), tl.arange(0, D)
    rows = (tl.program_id(1) * ROWS + tl.arange(0, ROWS))[:, None]
    valid = rows < B
    unit, ND = (n * D + d)[None, :], N * D
    k, out = d[:, None], d[None, :]
    zero = tl.full((ROWS, D), 0.0, tl.float32)
    stride = tl.cast(B, tl.int64) * T * ND
    {setup}
    for t in range(T):
        at = rows.to(tl.int64) * T + t
        x = Wx + at * ({inputs} * ND) + unit
        keep = saved + at * ({saved} * ND) + unit
        to = states + at * ND + unit
        hr = prev0.to(r0.dtype)
        {forward}
        if CLIP:
            prev0 = tl.minimum(tl.maximum(prev0, -clip), clip)
        {stores}
        if TRAIN:
            {keeps}


@triton.jit
def backward_kernel(
    R, initial, states, saved, dstates, delta, dinitial, B, T, N, clip, recurrent_clip,
    D: tl.constexpr, ROWS: tl.constexpr, CLIP: tl.constexpr, RECURRENT_CLIP: tl.constexpr, CUT: tl.constexpr,
):
    n, d = tl.program_id(0), tl.arange(0, D)
    rows = (tl.program_id(1) * ROWS + tl.arange(0, ROWS))[:, None]
    valid = rows < B
    unit, ND = (n * D + d)[None, :], N * D
    out, k = d[:, None], d[None, :]
    zero = tl.full((ROWS, D), 0.0, tl.float32)
    stride = tl.cast(B, tl.int64) * T * ND
    {backward_setup}
    for step in range(T):
        t = T - 1 - step
        at = rows.to(tl.int64) * T + t
        to = states + at * ND + unit
        before = tl.where(t > 0, to - ND, initial + rows * ND + unit)
        behind = tl.where(t > 0, stride, B * ND)
        keep = saved + at * ({saved} * ND) + unit
        grad = dstates + at * ND + unit
        into = delta + at * ({gates} * ND) + unit
        {loads}
        if CLIP:
            dnext0 = tl.where(tl.abs(next0) < clip, dnext0, 0.0)
        {backward}
        if not CUT:
            {through}
            if RECURRENT_CLIP:
                through = tl.minimum(tl.maximum(through, -recurrent_clip), recurrent_clip)
            dprev0 += through
    {results}


def forward(Wx, R, b, initial, states, saved, function, clip):
    batch, time, inputs, heads, dim = Wx.shape
    forward_kernel[(heads, triton.cdiv(batch, ROWS))](
        Wx, R, b, initial, states, saved, batch, time, heads, clip, D=dim, ROWS=ROWS, CLIP=clip > 0,
        TRAIN=saved.numel() > 0, num_stages=1,
    )


def backward(dstates, R, initial, states, saved, delta, dinitial, function, recurrent_clip, cut, clip):
    _, batch, time, heads, dim = states.shape
    backward_kernel[(heads, triton.cdiv(batch, ROWS))](
        R, initial, states, saved, dstates, delta, dinitial, batch, time, heads, clip, recurrent_clip, D=dim,
        ROWS=ROWS, CLIP=clip > 0, RECURRENT_CLIP=recurrent_clip > 0, CUT=cut,
        num_stages=1,
    )
"""
SPELLING = {
    "constant": "tl.full((ROWS, D), {!r}, tl.float32)", "exp": "tl.exp", "logsigmoid": "log_sigmoid", "min": "minimum",
    "max": "maximum",
}  # fmt: skip


@functools.lru_cache(maxsize=256)
def module_path(definition: str) -> Path:
    """The file with the cell's kernels and their launchers, written if it is not there yet."""
    text = source(definition).encode()
    path = build.cache_folder() / "triton" / f"flashrnn_{hashlib.sha256(text).hexdigest()[:20]}.py"
    if not path.exists() or path.read_bytes() != text:
        write_bytes(path, text)
    return path


def source(definition: str) -> str:
    """The text of the module; its ``forward`` and ``backward`` are called as those of ``gpu.py``."""
    cell = defined_cell(definition)
    program = cell.pointwise
    assert isinstance(program, Program)
    graph, to_gates, to_prev, saved = plan(definition)
    recurrent, gates, states = range(cell.recurrent_gates), range(cell.gates), range(cell.states)
    tiles = [f"r{g} = tile(R, {g}, n, out, k, N, D)" for g in recurrent]
    setup = tiles + [f"b{g} = tl.load(bias + {g} * ND + unit) + zero" for g in gates]
    setup += [f"prev{s} = tl.load(initial + ({s} * B + rows) * ND + unit, mask=valid, other=0.0)" for s in states]
    forward = []
    for g in gates:
        parts = [f"b{g}"]
        if g in recurrent:
            parts.append(f'tl.dot(hr, r{g}, input_precision="ieee")')
        if (i := g - (cell.gates - cell.input_gates)) >= 0:
            parts.append(f"tl.load(x + {i} * ND, mask=valid, other=0.0).to(tl.float32)")
        forward.append(f"a{g} = {' + '.join(parts)}")
    forward += lines(graph, [*program.outputs, *saved], {}, "{}{}", SPELLING)
    forward += [f"prev{s} = v{n}" for s, n in enumerate(program.outputs)]

    loads = [f"next{s} = tl.load(to + {s} * stride, mask=valid, other=0.0)" for s in states]
    loads += [f"prev{s} = tl.load(before + {s} * behind, mask=valid, other=0.0)" for s in states]
    loads += [f"saved{i} = tl.load(keep + {i} * ND, mask=valid, other=0.0)" for i in range(len(saved))]
    loads += [f"dnext{s} = dprev{s} + tl.load(grad + {s} * stride, mask=valid, other=0.0)" for s in states]
    results = [n for n in (*to_gates, *to_prev) if n is not None]
    backward = lines(graph, results, kept(program, saved), "{}{}", SPELLING)
    backward += [f"da{g} = {'zero' if n is None else f'v{n}'}" for g, n in enumerate(to_gates)]
    backward += [f"tl.store(into + {g} * ND, da{g}, mask=valid)" for g in gates]
    backward += [f"dprev{s} = {'zero' if n is None else f'v{n}'}" for s, n in enumerate(to_prev)]
    through = [f'tl.dot(da{g}.to(r0.dtype), r{g}, input_precision="ieee")' for g in recurrent]
    return TEMPLATE.format(
        inputs=cell.input_gates,
        gates=cell.gates,
        saved=len(saved),
        setup=_block(setup, 1),
        forward=_block(forward, 2),
        stores=_block([f"tl.store(to + {s} * stride, prev{s}, mask=valid)" for s in states], 2),
        keeps=_block([f"tl.store(keep + {i} * ND, v{n}, mask=valid)" for i, n in enumerate(saved)] or ["pass"], 3),
        backward_setup=_block(tiles + [f"dprev{s} = zero" for s in states], 1),
        loads=_block(loads, 2),
        backward=_block(backward, 2),
        through=_block([f"through = {through[0]}", *(f"through += {x}" for x in through[1:])], 3),
        results=_block([f"tl.store(dinitial + ({s} * B + rows) * ND + unit, dprev{s}, mask=valid)" for s in states], 1),
    )


def _block(statements: list[str], indent: int) -> str:
    return ("\n" + "    " * indent).join(statements)
