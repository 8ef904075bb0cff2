import itertools

import pytest
import torch
from torch import nn

from flambeau.ops import build
from flambeau.ops.flashrnn import CELLS, Cell, flashrnn
from flambeau.ops.triton_kernels import installed

ISAS = list(build.ISA_FLAGS)
RUNS = ISAS[: ISAS.index(build.instruction_set()) + 1]
needs_triton = pytest.mark.skipif(not installed(), reason="Triton is not installed")


@pytest.fixture(params=ISAS)
def isa(request, monkeypatch):
    if request.param not in RUNS:
        pytest.skip(f"this processor has no {request.param}")
    monkeypatch.setenv("FLAMBEAU_ISA", request.param)
    return request.param


def example(function, batch, time, heads, dim, dtype=torch.float64, seed=0):
    """Wx, R, b and initial states; the first row of sLSTM starts empty (n = 0), the others amid a sequence."""
    generator = torch.Generator().manual_seed(seed)
    cell = CELLS[function]
    shapes = [
        (batch, time, cell.input_gates, heads, dim),
        (cell.recurrent_gates, heads, dim, dim),
        (cell.gates, heads, dim),
        (cell.states, batch, 1, heads, dim),
    ]
    Wx, R, b, states = (torch.randn(s, dtype=torch.float64, generator=generator) for s in shapes)
    R /= dim**0.5
    if function == "slstm":
        states[2] = states[2].abs() + 1
        states[:, 0] = 0
    return [Wx.to(dtype), R.to(dtype), b, states]


def values_and_gradients(function, backend, inputs, dtypes, **options):
    """States and the gradients of all inputs for random weights on every state (m is a constant: no weight)."""
    inputs = [x.detach().clone().to(dtype).requires_grad_() for x, dtype in zip(inputs, dtypes)]
    states, last = flashrnn(*inputs, function, backend, **options)
    weights = torch.randn(states.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    weights[3:] = 0
    ((states.double() * weights).sum() + 3 * last[:3].double().square().sum()).backward()
    return states.detach().double(), [
        torch.zeros_like(x).double() if x.grad is None else x.grad.double() for x in inputs
    ]


def assert_near(ours, exact, forward, gradient):
    torch.testing.assert_close(ours[0], exact[0], atol=forward, rtol=forward)
    for name, a, b in zip(["Wx", "R", "b", "states"], ours[1], exact[1]):
        assert (a - b).abs().max() <= gradient * max(1e-3, b.abs().max()), name


SHAPES = [(1, 5, 1, 64), (3, 17, 2, 19), (7, 4, 3, 33), (13, 3, 1, 5), (1, 1, 1, 1)]
OPTIONS = [
    {},
    {"gradient_recurrent_clipval": 0.3, "forward_clipval": 0.6},
    {"gradient_recurrent_cut": True},
]


@pytest.mark.parametrize("function", CELLS)
def test_cpu_equals_float64_reference(isa, function):
    for shape, options in itertools.product(SHAPES, OPTIONS):
        inputs = [x.float().double() for x in example(function, *shape)]
        exact = values_and_gradients(function, "reference", inputs, [torch.float64] * 4, **options)
        ours = values_and_gradients(function, "cpu", inputs, [torch.float32] * 4, **options)
        assert_near(ours, exact, 2e-5, 1e-4)


@pytest.mark.parametrize("function", CELLS)
def test_cpu_bfloat16_storage(isa, function):
    for shape in SHAPES:
        inputs = [x.float().double() for x in example(function, *shape, dtype=torch.bfloat16)]
        exact = values_and_gradients(function, "reference", inputs, [torch.float64] * 4)
        ours = values_and_gradients(function, "cpu", inputs, [torch.bfloat16] * 2 + [torch.float32] * 2)
        assert_near(ours, exact, 3e-2, 3e-2)


@needs_triton
@pytest.mark.parametrize("function", CELLS)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, (2e-5, 1e-4)), (torch.float16, (1e-2, 1e-2))])
def test_triton_equals_float64_reference(function, dtype, tolerance):
    for shape, options in zip([(3, 5, 2, 16), (18, 2, 1, 32), (1, 3, 1, 16)], OPTIONS):
        if dtype is torch.float16:
            options = {}  # a value beside a clip limit may fall on either side
        inputs = [x.float().double() for x in example(function, *shape, dtype=dtype)]
        exact = values_and_gradients(function, "reference", inputs, [torch.float64] * 4, **options)
        ours = values_and_gradients(function, "triton", inputs, [dtype] * 2 + [torch.float32] * 2, **options)
        assert_near(ours, exact, *tolerance)


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_do_not_change_a_bit_of_the_states(threads):
    for shape in [(1, 70, 1, 144), (4, 80, 3, 72), (2, 40, 4, 96), (9, 30, 1, 80)]:  # panels, pieces of batch, heads
        inputs = [x.float() for x in example("lstm", *shape)]
        alone = values_and_gradients("lstm", "cpu", inputs, [torch.float32] * 4)
        torch.set_num_threads(threads)
        try:
            together = values_and_gradients("lstm", "cpu", inputs, [torch.float32] * 4)
        finally:
            torch.set_num_threads(1)
        assert torch.equal(alone[0], together[0])
        torch.testing.assert_close(alone[1], together[1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("backend", ["reference", "cpu", pytest.param("triton", marks=needs_triton)])
@pytest.mark.parametrize("function", CELLS)
def test_three_pieces_equal_one_run_bit_for_bit(function, backend):
    dtypes = [torch.float32, torch.bfloat16] if backend == "cpu" else [torch.float32]
    for dtype in dtypes:
        Wx, R, b, states = (
            x.to(dtype if i < 2 else torch.float32) for i, x in enumerate(example(function, 3, 9, 2, 16))
        )
        whole, last = flashrnn(Wx, R, b, states, function, backend)
        pieces = []
        for part in Wx.split([2, 1, 6], 1):
            piece, states = flashrnn(part, R, b, states, function, backend)
            pieces.append(piece)
        assert torch.equal(torch.cat(pieces, 2), whole)
        assert torch.equal(states, last)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_heads_equal_separate_networks_and_a_block_diagonal_one(backend):
    Wx, R, b, _ = (x.float() for x in example("lstm", 3, 12, 4, 8))
    together = flashrnn(Wx, R, b, None, "lstm", backend)[0]
    for head in range(4):
        part = slice(head, head + 1)
        separate = flashrnn(Wx[:, :, :, part], R[:, part], b[:, part], None, "lstm", backend)[0]
        torch.testing.assert_close(separate, together[:, :, :, part], atol=1e-5, rtol=1e-5)
    dense = torch.stack([torch.block_diag(*gate) for gate in R])[:, None]
    one = flashrnn(Wx.flatten(3)[:, :, :, None], dense, b.flatten(1)[:, None], None, "lstm", backend)[0]
    torch.testing.assert_close(one.flatten(3), together.flatten(3), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "backend, dtype, tolerance", [("reference", torch.float64, 1e-10), ("cpu", torch.float32, 1e-5)]
)
def test_elman_equals_torch(backend, dtype, tolerance):
    torch.manual_seed(0)
    module = nn.RNN(5, 7, batch_first=True).to(dtype)
    x = torch.randn(3, 30, 5, dtype=dtype)
    Wx = (x @ module.weight_ih_l0.T)[:, :, None, None]
    bias = (module.bias_ih_l0 + module.bias_hh_l0)[None, None]
    states, _ = flashrnn(Wx, module.weight_hh_l0[None, None], bias, None, "elman", backend)
    expected = module(x)[0]
    torch.testing.assert_close(states[0, :, :, 0], expected, atol=tolerance, rtol=tolerance)
    parameters = list(module.parameters())
    ours, theirs = (torch.autograd.grad(y.square().sum(), parameters) for y in (states, expected))
    torch.testing.assert_close(ours, theirs, atol=50 * tolerance, rtol=50 * tolerance)


@pytest.mark.parametrize("function", CELLS)
def test_gradcheck_of_the_reference(function):
    inputs = [x.requires_grad_() for x in example(function, 2, 3, 2, 3)]

    def outputs(Wx, R, b, states):
        every, last = flashrnn(Wx, R, b, states, function, "reference")
        return every[0], last[:2] if function == "lstm" else last[:1]

    if function == "slstm":  # m is a constant, so its own derivative is not taken, nor those of c and n, scaled by it
        fixed = inputs[3].detach()[3:]
        inputs[3] = inputs[3].detach()[:3, 1:].requires_grad_()
        inputs[0] = inputs[0].detach()[1:].requires_grad_()
        run = lambda Wx, R, b, s: outputs(Wx, R, b, torch.cat([s, fixed[:, 1:]]))  # noqa: E731
        assert torch.autograd.gradcheck(run, inputs)
    else:
        assert torch.autograd.gradcheck(outputs, inputs)


def unstabilised(Wx, R, b):
    """sLSTM as written before stabilisation (Beck et al., 2024, equations 8-14): exponential input gate, no m."""
    h = c = n = torch.zeros_like(Wx[:, 0, 0])
    outputs = []
    for wx in Wx.unbind(1):
        i, f, z, o = (wx + torch.einsum("bni,gnoi->bgno", h, R) + b).unbind(1)
        c = torch.sigmoid(f) * c + torch.exp(i) * torch.tanh(z)
        n = torch.sigmoid(f) * n + torch.exp(i)
        h = torch.sigmoid(o) * c / n
        outputs.append(h)
    return torch.stack(outputs, 1)


@pytest.mark.parametrize(
    "backend, dtype, tolerance", [("reference", torch.float64, 1e-9), ("cpu", torch.float32, 2e-5)]
)
def test_slstm_equals_its_unstabilised_form(backend, dtype, tolerance):
    inputs = example("slstm", 3, 12, 2, 5)[:3]
    results = []
    for run, kind in [(unstabilised, torch.float64), (lambda *x: flashrnn(*x, None, "slstm", backend)[0][0], dtype)]:
        x = [i.to(kind).requires_grad_() for i in inputs]
        h = run(*x)
        results.append([h.double(), *(g.double() for g in torch.autograd.grad(h.square().sum(), x))])
    torch.testing.assert_close(*results, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("backend", ["reference", "cpu", pytest.param("triton", marks=needs_triton)])
@pytest.mark.filterwarnings("ignore:overflow")
def test_extreme_gates_stay_finite(backend):
    for function in CELLS:
        Wx, R, b, _ = (x.float() for x in example(function, 2, 6, 1, 16))
        Wx = (Wx.sign() * 500).requires_grad_()
        states, _ = flashrnn(Wx, R, b, None, function, backend)
        states[0].sum().backward()
        assert torch.isfinite(states).all() and torch.isfinite(Wx.grad).all(), function


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_slstm_first_step_is_a_matter_of_each_row(backend):
    Wx, R, b, states = (x.float() for x in example("slstm", 4, 5, 2, 6))
    mixed = flashrnn(Wx, R, b, states, "slstm", backend)[0]
    fresh = flashrnn(Wx[:1], R, b, None, "slstm", backend)[0]
    torch.testing.assert_close(mixed[:, :1], fresh)


@pytest.mark.parametrize("backend", ["reference", "cpu", pytest.param("triton", marks=needs_triton)])
def test_cut_leaves_only_the_path_through_c(backend):
    Wx, R, b, _ = (x.float() for x in example("lstm", 1, 4, 1, 16))
    Wx.requires_grad_()
    R.requires_grad_()
    states, _ = flashrnn(Wx, R, b, None, "lstm", backend, gradient_recurrent_cut=True)
    got, got_R = torch.autograd.grad(states[0, :, -1].sum(), [Wx, R])
    h = torch.cat([torch.zeros(1, 1, 1, 16), states[0, :, :-1]], 1).detach()  # the recurrence as a given input
    i, f, z, o = (Wx + torch.einsum("btni,gnoi->btgno", h, R) + b).unbind(2)
    c = torch.zeros(1, 1, 16)
    for t in range(4):
        c = torch.sigmoid(f[:, t]) * c + torch.sigmoid(i[:, t]) * torch.tanh(z[:, t])
    exact, exact_R = torch.autograd.grad((torch.sigmoid(o[:, -1]) * torch.tanh(c)).sum(), [Wx, R])
    torch.testing.assert_close((got, got_R), (exact, exact_R), atol=1e-5, rtol=1e-4)
    assert not got[0, :-1, 3].any() and got[0, :-1, :3].any()  # no output gate of an earlier step, but its c
    elman = [x.float() for x in example("elman", 1, 4, 1, 16)[:3]]
    elman[0].requires_grad_()
    states, _ = flashrnn(*elman, None, "elman", backend, gradient_recurrent_cut=True)
    assert not torch.autograd.grad(states[0, :, -1].sum(), elman[0])[0][:, :-1].any()


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_lengths(backend):
    Wx, R, b, states = (x.float() for x in example("gru", 3, 6, 2, 5))
    Wx[0, 2:] = torch.nan
    Wx.requires_grad_()
    every, last = flashrnn(Wx, R, b, states, "gru", backend, lengths=torch.tensor([2, 6, 4]))
    (every.sum() + last.sum()).backward()
    assert torch.isfinite(every).all() and not every[:, 0, 2:].any() and not Wx.grad[0, 2:].any()
    for row, length in enumerate([2, 6, 4]):
        alone, alone_last = flashrnn(Wx[row, None, :length], R, b, states[:, row, None], "gru", backend)
        torch.testing.assert_close(every[:, row, None, :length], alone)
        torch.testing.assert_close(last[:, row, None], alone_last)


@pytest.mark.parametrize("backend", ["cpu", pytest.param("triton", marks=needs_triton)])
def test_second_derivatives_are_refused_by_kernels_and_given_by_the_reference(backend):
    inputs = [x.float().requires_grad_() for x in example("elman", 1, 3, 1, 16)[:3]]
    for which in ("reference", backend):
        states, _ = flashrnn(*inputs, None, "elman", which)
        (first,) = torch.autograd.grad(states.square().sum(), inputs[0], create_graph=True)
        if which == "reference":
            assert torch.autograd.grad(first.square().sum(), inputs[1])[0].any()
        else:
            with pytest.raises(RuntimeError, match="second derivatives exist only with backend='reference'"):
                torch.autograd.grad(first.square().sum(), inputs[1])


@pytest.mark.parametrize("function", ["slstm", "elman"])  # most states; nothing saved
def test_opcheck(function):
    Wx, R, b, states = (x.float().requires_grad_() for x in example(function, 2, 3, 1, 4))
    arguments = (Wx, R, b, states.detach()[:, :, 0].requires_grad_(), function, 0.5, False, 0.0, True, "cpu")
    torch.library.opcheck(torch.ops.flambeau.flashrnn, arguments)


def test_compile_export_and_autocast():
    Wx, R, b, states = (x.float() for x in example("slstm", 2, 5, 2, 4))
    Wx.requires_grad_()

    def run(Wx):
        return flashrnn(Wx, R, b, states, "slstm", "cpu", gradient_recurrent_clipval=0.5)[0][0]

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    grads = [torch.autograd.grad(f(Wx).square().sum(), Wx)[0] for f in (run, compiled)]
    torch.testing.assert_close(*grads)

    class Network(nn.Module):
        def forward(self, Wx):
            return run(Wx)

    exported = torch.export.export(Network(), (Wx.detach(),))
    torch.testing.assert_close(exported.module()(Wx.detach()), run(Wx).detach())
    with torch.autocast("cpu", torch.bfloat16):
        mixed = run(Wx)
    assert mixed.dtype == torch.float32 and not torch.equal(mixed, run(Wx))
    torch.testing.assert_close(mixed, run(Wx), atol=3e-2, rtol=3e-2)


def test_a_cell_of_your_own():
    def leaky(pre, prev):  # an integrator whose leak is a gate
        keep = torch.sigmoid(pre[0])
        return (keep * prev[0] + (1 - keep) * torch.relu(pre[1]),)

    generator = torch.Generator().manual_seed(0)
    Wx, R, b = (
        torch.randn(s, generator=generator).requires_grad_() for s in [(2, 4, 2, 1, 3), (2, 1, 3, 3), (2, 1, 3)]
    )
    states, last = flashrnn(Wx, R, b, None, Cell(2, 2, 2, 1, leaky))
    assert states.shape == (1, 2, 4, 1, 3) and torch.equal(last, states[:, :, -1:])
    assert torch.autograd.grad(last.sum(), R)[0].any()
    with pytest.raises(ValueError, match="backend 'cpu' cannot run this: a Cell of your own"):
        flashrnn(Wx, R, b, None, Cell(2, 2, 2, 1, leaky), "cpu")


@pytest.mark.parametrize(
    "change, error, message",
    [
        (dict(Wx=torch.zeros(2, 3, 4, 1)), ValueError, r"Wx has shape \(2, 3, 4, 1\)"),
        (dict(Wx=torch.zeros(2, 3, 3, 1, 5)), ValueError, "Wx has 3 on axis 'gates'.*expected 4"),
        (dict(Wx=torch.zeros(2, 0, 4, 1, 5)), ValueError, "every axis must be at least 1"),
        (dict(R=torch.zeros(4, 1, 6, 5)), ValueError, "R has 6 on axis 'output dim'.*expected 5"),
        (dict(b=torch.zeros(4, 2, 5)), ValueError, "b has 2 on axis 'heads'.*expected 1"),
        (dict(b=torch.zeros(4, 1, 5, dtype=torch.int64)), TypeError, "b is torch.int64"),
        (dict(states=torch.zeros(2, 2, 1, 5)), ValueError, "states has shape"),
        (dict(states=torch.zeros(3, 2, 1, 1, 5)), ValueError, "states has 3 on axis 'states'.*expected 2"),
        (dict(function="rnn"), ValueError, "function is 'rnn'; expected one of lstm, slstm, gru, elman"),
        (dict(backend="cuda"), ValueError, "backend is 'cuda'"),
        (dict(backend="triton"), ValueError, "power of two from 16 to 128, Wx has 5|Triton is not installed"),
        (dict(Wx=torch.zeros(2, 3, 4, 1, 5).double(), backend="cpu"), TypeError, "needs float32 or bfloat16"),
        (dict(gradient_recurrent_clipval=-1.0), ValueError, "gradient_recurrent_clipval is -1.0"),
        (dict(lengths=torch.tensor([3])), ValueError, r"lengths has shape \(1,\)"),
        (dict(lengths=torch.tensor([0, 3])), ValueError, "lengths run from 0 to 3; expected 1 to 3"),
    ],
)
def test_bad_input(change, error, message):
    good = dict(Wx=torch.zeros(2, 3, 4, 1, 5), R=torch.zeros(4, 1, 5, 5), b=torch.zeros(4, 1, 5))
    with pytest.raises(error, match=message):
        flashrnn(**{**good, **change})
