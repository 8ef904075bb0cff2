"""Recurrent networks with heads, the whole time loop in one kernel, forward and backward."""

import functools
import warnings

import torch
from jaxtyping import Float, Int
from torch import Tensor

from flambeau.ops import build
from flambeau.ops.flashrnn import cpu, operators
from flambeau.ops.flashrnn.expression import expression_cell
from flambeau.ops.flashrnn.reference import CELLS, Cell, flashrnn_reference

__all__ = ["CELLS", "Cell", "expression_cell", "flashrnn"]


def flashrnn(
    Wx: Float[Tensor, "batch time input_gates heads dim"],
    R: Float[Tensor, "recurrent_gates heads dim dim"],
    b: Float[Tensor, "gates heads dim"],
    states: Float[Tensor, "states batch 1 heads dim"] | None = None,
    function: str | Cell = "lstm",
    backend: str = "auto",
    *,
    lengths: Int[Tensor, " batch"] | None = None,
    gradient_recurrent_clipval: float | None = None,
    gradient_recurrent_cut: bool = False,
    forward_clipval: float | None = None,
) -> tuple[Float[Tensor, "states batch time heads dim"], Float[Tensor, "states batch 1 heads dim"]]:
    """Run a recurrent cell whose recurrence is block diagonal: ``heads`` blocks of ``dim`` units.

    Source: Pöppel, Beck, Hochreiter, "FlashRNN" (2024). Gates: lstm and slstm i, f, z, o; gru has R for g, r, z, inputs
    for r, z, n and biases for g, r, z, n (``torch.nn.GRU``'s candidate is tanh(n + r g)); elman one. States: lstm h, c;
    slstm h, c, n, m; gru and elman h.

    Args:
        Wx: the input's projections, already computed. With bfloat16 the recurrent product runs in bfloat16 with float32
            sums; states are float32 then. float64 runs the reference.
        R: recurrent weights, indexed [gate, head, output, input].
        states: initial states; zeros when absent.
        function: ``"lstm"``, ``"slstm"``, ``"gru"``, ``"elman"`` or a ``Cell`` of your own:
            one from ``expression_cell`` has kernels of its own, one with a Python function runs in the reference.
        backend: ``"cpu"`` (compiled), ``"triton"``, ``"reference"``, or ``"auto"``: the fastest that can run this.
        lengths: steps of each row, 1 to time. Later steps neither read Wx nor count; their states are returned as zero.
        gradient_recurrent_clipval: bound on each element of the gradient that flows back through R.
        gradient_recurrent_cut: let no gradient flow back through R (R itself still gets its gradient).
        forward_clipval: bound on each element of h.

    Returns:
        States of all steps and of the last step (of each row's last valid step with ``lengths``).

    Raises:
        ValueError: a shape, the cell, the backend or an option does not fit; the message names it.
        TypeError: dtypes the chosen backend cannot run.
    """
    cell = _cell(function)
    _check(Wx, R, b, states, cell, lengths)
    cut = bool(gradient_recurrent_cut)
    gradient_clip = _clip("gradient_recurrent_clipval", gradient_recurrent_clipval)
    forward_clip = _clip("forward_clipval", forward_clipval)
    if torch.is_autocast_enabled(Wx.device.type) and Wx.dtype != torch.float64:
        Wx = Wx.to(torch.get_autocast_dtype(Wx.device.type))
    batch, time, _, heads, dim = Wx.shape
    compute = torch.promote_types(Wx.dtype, torch.float32)
    initial = Wx.new_zeros(cell.states, batch, heads, dim, dtype=compute) if states is None else states[:, :, 0]
    R, b, initial = R.to(Wx.dtype), b.to(compute), initial.to(compute)
    if lengths is not None:
        past = torch.arange(time, device=Wx.device) >= lengths.to(Wx.device)[:, None]
        Wx = Wx.masked_fill(past[:, :, None, None, None], 0)

    name = cell.definition if isinstance(function, Cell) else function
    backend = _backend(backend, Wx, name)
    if backend == "reference":
        result = flashrnn_reference(Wx.to(compute), R.to(compute), b, initial, cell, gradient_clip, cut, forward_clip)
    else:
        train = torch.is_grad_enabled() and any(x.requires_grad for x in (Wx, R, b, initial))
        result = operators.run(Wx, R, b, initial, name, gradient_clip, cut, forward_clip, train, backend)

    if lengths is None:
        return result, result[:, :, -1:]
    index = (lengths.to(Wx.device) - 1).view(1, -1, 1, 1, 1).expand(cell.states, -1, 1, heads, dim)
    return result.masked_fill(past[None, :, :, None, None], 0), result.gather(2, index)


def _cell(function: str | Cell) -> Cell:
    if isinstance(function, Cell):
        return function
    if function not in CELLS:
        raise ValueError(f"function is {function!r}; expected one of {', '.join(CELLS)} or a Cell")
    return CELLS[function]


def _clip(name: str, value: float | None) -> float:
    if value is None:
        return 0.0
    if not value > 0:
        raise ValueError(f"{name} is {value}; expected a positive number or None")
    return float(value)


def _check(Wx: Tensor, R: Tensor, b: Tensor, states: Tensor | None, cell: Cell, lengths: Tensor | None) -> None:
    if Wx.ndim != 5:
        raise ValueError(f"Wx has shape {tuple(Wx.shape)}; expected [batch, time, gates, heads, dim]")
    batch, time, _, heads, dim = Wx.shape
    axes = [
        ("Wx", Wx, {"batch": batch, "time": time, "gates": cell.input_gates, "heads": heads, "dim": dim}),
        ("R", R, {"gates": cell.recurrent_gates, "heads": heads, "output dim": dim, "input dim": dim}),
        ("b", b, {"gates": cell.gates, "heads": heads, "dim": dim}),
    ]
    if states is not None:
        axes.append(("states", states, {"states": cell.states, "batch": batch, "step": 1, "heads": heads, "dim": dim}))
    for name, tensor, expected in axes:
        if tensor.ndim != len(expected):
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; expected [{', '.join(expected)}]")
        if not tensor.is_floating_point():
            raise TypeError(f"{name} is {tensor.dtype}; expected a floating-point dtype")
        if tensor.device != Wx.device:
            raise ValueError(f"{name} is on {tensor.device}, Wx on {Wx.device}")
        for (axis, size), got in zip(expected.items(), tensor.shape):
            if got != size:
                raise ValueError(f"{name} has {got} on axis '{axis}' (shape {tuple(tensor.shape)}); expected {size}")
    if 0 in Wx.shape:
        raise ValueError(f"Wx has shape {tuple(Wx.shape)}; every axis must be at least 1")
    if lengths is not None and lengths.shape != (batch,):
        raise ValueError(f"lengths has shape {tuple(lengths.shape)}; expected ({batch},), one a row")
    if lengths is not None and not torch.compiler.is_compiling():
        low, high = int(lengths.min()), int(lengths.max())
        if low < 1 or high > time:
            raise ValueError(f"lengths run from {low} to {high}; expected 1 to {time}, the time axis of Wx")


def _backend(backend: str, Wx: Tensor, name: str | None) -> str:
    if backend not in ("auto", "reference", "cpu", "triton"):
        raise ValueError(f"backend is {backend!r}; expected auto, reference, cpu or triton")
    fused = "triton" if Wx.is_cuda else "cpu"
    wanted = fused if backend == "auto" else backend
    if wanted == "reference":
        return wanted
    obstacle: str | None
    if name is None:
        obstacle = "a Cell of your own runs in the reference, unless expression_cell makes it"
    else:
        obstacle = operators.obstacle(wanted, Wx, name)
        if obstacle is None and backend == "auto" and wanted == "cpu":
            return "cpu" if build.available("flashrnn", cpu.loader(name, Wx.dtype == torch.bfloat16)) else "reference"
    if obstacle is None:
        return wanted
    if backend == "auto":
        if fused == "triton":
            _warn_once(obstacle)
        return "reference"
    raise (TypeError if "float32" in obstacle else ValueError)(f"backend {wanted!r} cannot run this: {obstacle}")


@functools.cache
def _warn_once(obstacle: str) -> None:
    warnings.warn(f"flashrnn: using the PyTorch reference, the Triton kernel cannot run this: {obstacle}", stacklevel=4)
