import copy
import itertools
import pickle

import pytest
import torch

from flambeau.ops import build
from flambeau.ops.flashrnn import CELLS, Cell, cpu, expression_cell, flashrnn, generated, generated_gpu
from flambeau.ops.flashrnn.reference import flashrnn_reference
from flambeau.ops.triton_kernels import installed

ISAS = list(build.ISA_FLAGS)
RUNS = ISAS[: ISAS.index(build.instruction_set()) + 1]

LSTM = expression_cell(
    """
    c = sigmoid(f) * c + sigmoid(i) * tanh(z)  # the previous c on the right, the new one below
    h = sigmoid(o) * tanh(c)
    """,
    gates="i f z o",
    states="h c",
)
GRU = expression_cell(
    "n = tanh(n + sigmoid(r) * g); h = n + sigmoid(z) * (h - n)", "g r z n", "h", recurrent_gates=3, input_gates=3
)
ELMAN = expression_cell("h = tanh(g)", "g", "h")
UGRNN = expression_cell("g = sigmoid(g)\nh = g * h + (1 - g) * tanh(c)", "c g", "h")  # Collins et al., 2017
MGU = expression_cell(  # Zhou et al., 2016, forgetting after the product
    "f = sigmoid(f)\nh = (1 - f) * h + f * tanh(n + f * g)", "g f n", "h", recurrent_gates=2, input_gates=2
)
EVERYTHING = expression_cell(
    """
    keep = exp(logsigmoid(a) + logsigmoid(-b))
    old = m
    m = max(0.5 * m, relu(b), min(c, 2, h)) - -keep
    h = (h * keep + tanh(c) * 1e-1 / (1 + relu(old))) / (2 + sigmoid(a - h) - keep)
    n = h * n + c * c  # h before it is clipped
    """,
    gates="a b c",
    states="h m n",
    recurrent_gates=2,
    input_gates=3,
)
SHAPES = [(1, 5, 1, 64), (3, 17, 2, 19), (7, 4, 3, 33), (1, 1, 1, 1)]
OPTIONS = [{}, {"gradient_recurrent_clipval": 0.3, "forward_clipval": 0.2}, {"gradient_recurrent_cut": True}]


def example(cell, batch, time, heads, dim, seed=0):
    """Wx, R, b and initial states in float64, whose values float32 can hold."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [
        (batch, time, cell.input_gates, heads, dim),
        (cell.recurrent_gates, heads, dim, dim),
        (cell.gates, heads, dim),
        (cell.states, batch, 1, heads, dim),
    ]
    Wx, R, b, states = (torch.randn(s, generator=generator) for s in shapes)
    return [x.double() for x in (Wx, R / dim**0.5, b, states)]


def values_and_gradients(function, backend, inputs, dtypes, **options):
    inputs = [x.detach().clone().to(dtype).requires_grad_() for x, dtype in zip(inputs, dtypes)]
    states, last = flashrnn(*inputs, function, backend, **options)
    weights = torch.randn(states.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    ((states.double() * weights).sum() + 3 * last.double().square().sum()).backward()
    return states.detach().double(), [
        torch.zeros_like(x).double() if x.grad is None else x.grad.double() for x in inputs
    ]


def assert_near(ours, exact, forward=2e-5, gradient=1e-4):
    torch.testing.assert_close(ours[0], exact[0], atol=forward, rtol=forward)
    for name, a, b in zip(["Wx", "R", "b", "states"], ours[1], exact[1]):
        assert (a - b).abs().max() <= gradient * max(1e-3, b.abs().max()), name


@pytest.mark.parametrize("isa", ISAS)
def test_every_function_on_every_instruction_set(isa, monkeypatch):
    if isa not in RUNS:
        pytest.skip(f"this processor has no {isa}")
    monkeypatch.setenv("FLAMBEAU_ISA", isa)
    for shape, options in itertools.product(SHAPES, OPTIONS):
        inputs = example(EVERYTHING, *shape)
        exact = values_and_gradients(EVERYTHING, "reference", inputs, [torch.float64] * 4, **options)
        ours = values_and_gradients(EVERYTHING, "cpu", inputs, [torch.float32] * 4, **options)
        assert_near(ours, exact)
    zeros = [torch.zeros_like(x) for x in inputs]  # both sides of every min and max are equal
    exact = values_and_gradients(EVERYTHING, "reference", zeros, [torch.float64] * 4)
    assert_near(values_and_gradients(EVERYTHING, "cpu", zeros, [torch.float32] * 4), exact)
    inputs[0][..., 0] = torch.nan
    assert flashrnn(*(x.float() for x in inputs), EVERYTHING, "cpu")[0][..., 0].isnan().all()


@pytest.mark.skipif(not installed(), reason="Triton is not installed")
@pytest.mark.parametrize("cell", [EVERYTHING, LSTM, MGU], ids=["everything", "lstm", "mgu"])
def test_triton_equals_the_float64_reference(cell):
    for shape, options in zip([(3, 5, 2, 16), (18, 2, 1, 32), (1, 3, 1, 16)], OPTIONS):
        inputs = example(cell, *shape)
        exact = values_and_gradients(cell, "reference", inputs, [torch.float64] * 4, **options)
        assert_near(values_and_gradients(cell, "triton", inputs, [torch.float32] * 4, **options), exact)
    zeros = [torch.zeros_like(x) for x in inputs]
    exact = values_and_gradients(cell, "reference", zeros, [torch.float64] * 4)
    assert_near(values_and_gradients(cell, "triton", zeros, [torch.float32] * 4), exact)
    inputs[0][:] = torch.nan
    assert flashrnn(*(x.float() for x in inputs), cell, "triton")[0].isnan().all()


@pytest.mark.parametrize("cell", [LSTM, GRU, MGU, UGRNN], ids=["lstm", "gru", "mgu", "ugrnn"])
def test_cells_equal_the_float64_reference(cell):
    for shape, options in zip(SHAPES[1:], OPTIONS):
        inputs = example(cell, *shape)
        exact = values_and_gradients(cell, "reference", inputs, [torch.float64] * 4, **options)
        assert_near(values_and_gradients(cell, "cpu", inputs, [torch.float32] * 4, **options), exact)


@pytest.mark.parametrize("cell, name", [(LSTM, "lstm"), (GRU, "gru"), (ELMAN, "elman")])
def test_built_in_cells_written_as_expressions_are_the_same(cell, name):
    for options in OPTIONS:
        inputs = example(cell, 3, 9, 2, 19)
        for backend, dtype in [("reference", torch.float64), ("cpu", torch.float32)]:
            theirs = values_and_gradients(name, backend, inputs, [dtype] * 4, **options)
            ours = values_and_gradients(cell, backend, inputs, [dtype] * 4, **options)
            tolerance = 1e-12 if dtype == torch.float64 else 1e-5
            assert_near(ours, theirs, tolerance, tolerance)
    assert generated.saved_values(ELMAN.definition) == 0 and generated.saved_values(GRU.definition) == 4


def test_bfloat16_storage():
    inputs = [x.bfloat16().double() if i < 2 else x for i, x in enumerate(example(UGRNN, 3, 9, 2, 19))]
    exact = values_and_gradients(UGRNN, "reference", inputs, [torch.float64] * 4)
    dtypes = [torch.bfloat16] * 2 + [torch.float32] * 2
    assert_near(values_and_gradients(UGRNN, "cpu", inputs, dtypes), exact, 3e-2, 3e-2)


def test_gradcheck_and_second_derivatives():
    inputs = [x.requires_grad_() for x in example(MGU, 1, 3, 2, 3)]
    assert torch.autograd.gradgradcheck(lambda *x: flashrnn(*x, MGU, "reference")[0], inputs)
    x = [x.detach().float().requires_grad_() for x in inputs]
    (first,) = torch.autograd.grad(flashrnn(*x, MGU, "cpu")[0].square().sum(), x[0], create_graph=True)
    with pytest.raises(RuntimeError, match="second derivatives exist only"):
        torch.autograd.grad(first.sum(), x[1])


def test_auto_takes_the_kernel_and_falls_back(monkeypatch):
    inputs = [x.float() for x in example(UGRNN, 2, 5, 1, 8)]
    asked = []
    forward = cpu.forward
    monkeypatch.setattr(cpu, "forward", lambda *a: (asked.append(a[6]), forward(*a)))
    flashrnn(*inputs, UGRNN)
    assert asked == [UGRNN.definition]
    exact = flashrnn(*(x.double() for x in inputs), UGRNN)[0]
    assert exact.dtype == torch.float64 and len(asked) == 1
    plain = Cell(2, 2, 2, 1, UGRNN.pointwise)  # the same cell as a Python function only
    assert torch.equal(flashrnn(*inputs, plain)[0], flashrnn(*inputs, UGRNN, "reference")[0]) and len(asked) == 1
    with pytest.raises(ValueError, match="128 KiB; here that is 384|Triton is not installed"):
        large = expression_cell("h = a + b + c + d + e + f", "a b c d e f", "h")
        flashrnn(
            torch.zeros(1, 1, 6, 1, 128), torch.zeros(6, 1, 128, 128), torch.zeros(6, 1, 128), None, large, "triton"
        )

    def refuse(isa, definition="", bf16=False):
        raise build.BuildError("no compiler")

    monkeypatch.setattr(cpu, "_kernels", refuse)
    other = expression_cell("h = tanh(g) - h", "g", "h")
    inputs = [x.float() for x in example(other, 2, 5, 1, 8)]
    with pytest.warns(UserWarning, match="using the PyTorch reference. no compiler"):
        flashrnn(*inputs, other)


def test_opcheck_compile_pickle_and_copy():
    Wx, R, b, states = (x.float().requires_grad_() for x in example(UGRNN, 2, 3, 1, 4))
    initial = states.detach()[:, :, 0].requires_grad_()
    torch.library.opcheck(
        torch.ops.flambeau.flashrnn, (Wx, R, b, initial, UGRNN.definition, 0.5, False, 0.0, True, "cpu")
    )
    compiled = torch.compile(
        lambda Wx: flashrnn(Wx, R, b, states, UGRNN, "cpu")[0], fullgraph=True, backend="aot_eager"
    )
    expected = flashrnn(Wx, R, b, states, UGRNN, "cpu")[0]
    torch.testing.assert_close(compiled(Wx), expected)
    for twin in (pickle.loads(pickle.dumps(UGRNN)), copy.deepcopy(UGRNN)):
        assert twin == UGRNN and torch.equal(flashrnn(Wx, R, b, states, twin, "cpu")[0], expected)


def test_names_follow_the_order_of_lines():
    cell = expression_cell("old = h; h = 2 * g; c = h + 10 * old + 100 * c; unused = c / 0", "g", "h c")
    Wx, states = torch.full((1, 1, 1, 1, 1), 3.0), torch.tensor([5.0, 7.0]).view(2, 1, 1, 1)
    result = flashrnn_reference(Wx, torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1), states, cell)
    assert result.flatten().tolist() == [6.0, 756.0]
    constant = expression_cell("h = g; n = 1", "g", "h n")
    assert flashrnn_reference(Wx, torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1), states, constant)[1].item() == 1


@pytest.mark.parametrize(
    "text, message",
    [
        ("h = forget * h + g", "line 1 of the cell: unknown name 'forget'; did you mean forge?"),
        ("x = q\nh = g", "line 1 of the cell: unknown name 'q'; there are g, forge, h, c"),
        ("h = sigmod(g)", "unsupported function 'sigmod'; did you mean sigmoid?"),
        ("h = torch.tanhh(g)", r"unsupported function 'torch.tanhh'; did you mean tanh"),
        ("h = sin(g)", "unsupported function 'sin'; "),
        ("h = g + forge", "state 'c' is never assigned; the cell assigns h"),
        ("h = g; c = h", "gate 'forge' is never used"),
        ("h = g\nc = h +", r"line 2 of the cell: invalid syntax in 'c = h \+'"),
        ("h = g ** 2", r"'g \*\* 2' is not supported; expected numbers"),
        ("h = g if g > 0 else c", "is not supported"),
        ("h = g[0]", "is not supported"),
        ("h = True", "'True' is not supported"),
        ("h = 'g'", "is not supported"),
        ("h = 1e39 * g", r"'1e\+39' is beyond float32"),
        ("h = 1e999 * g", "is beyond float32"),
        ("h = tanh", r"'tanh' is a function; write tanh\(...\)"),
        ("h = tanh(g, c)", "tanh got 2 arguments; expected 1"),
        ("h = max(g)", "max got 1 arguments; expected 2 or more"),
        ("h = max(*g)", "expected plain arguments"),
        ("h, c = g, g", r"'h, c = \(g, g\)' is not NAME = EXPRESSION"),
        ("h += g", "is not NAME = EXPRESSION"),
        ("import os", "line 1 of the cell: 'import os' is not NAME = EXPRESSION"),
        ("tanh = g", "'tanh' is a function and cannot be assigned"),
        ("h = " + "-" * 3000 + "g", "more than 256 terms|cannot be parsed"),
        ("h = " + "+".join(["g"] * 300), "more than 256 terms|cannot be parsed"),
        ("h = " + "(" * 1500 + "g" + ")" * 1500, "too many nested parentheses|cannot be parsed"),
        ("h = g\0", "null bytes"),
        ("h = g" + " " * 5000, "text has 5005 characters; expected at most 4096"),
        ("", "state 'h' is never assigned"),
    ],
)
def test_bad_expressions(text, message):
    with pytest.raises(ValueError, match=message):
        expression_cell(text, "g forge", "h c")


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(gates=""), "gates names 0; expected 1 to 6"),
        (dict(gates="a b c d e f g"), "gates names 7"),
        (dict(states="h c d e f"), "states names 5; expected 1 to 4"),
        (dict(gates="g h"), "'h' names more than one gate or state"),
        (dict(gates="g-1"), "'g-1' cannot name a gate"),
        (dict(gates="exp"), "'exp' cannot name a gate"),
        (dict(recurrent_gates=0), "recurrent_gates is 0; expected 1 to 1"),
        (dict(input_gates=2), "input_gates is 2; expected 1 to 1"),
    ],
)
def test_bad_names_and_counts(change, message):
    with pytest.raises(ValueError, match=message):
        expression_cell(**{**dict(text="h = tanh(g)", gates="g", states="h"), **change})


def test_nothing_is_executed_and_no_text_reaches_the_compiler(tmp_path):
    target = tmp_path / "written"
    for text in (f"h = open({str(target)!r}, 'w')", f"h = __import__('pathlib').Path({str(target)!r}).touch() + g"):
        with pytest.raises(ValueError, match="unsupported function"):
            expression_cell(text, "g", "h")
    assert not target.exists()
    odd = expression_cell("system = g; abort = system * h; h = abort", "g", "h")  # names are the user's, code is not
    for text in (generated.cpp(odd.definition, False), generated_gpu.source(odd.definition)):
        assert "system" not in text and "abort" not in text
    assert CELLS.keys() == {"lstm", "slstm", "gru", "elman"}
