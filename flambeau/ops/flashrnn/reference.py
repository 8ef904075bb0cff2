"""FlashRNN in plain PyTorch: the definition the compiled and GPU kernels are checked against.

Pöppel, Beck, Hochreiter, "FlashRNN: I/O-aware optimization of traditional RNNs on modern hardware" (2024), section 2.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

Tensors = tuple[Tensor, ...]


@dataclass(frozen=True)
class Cell:
    """A recurrent cell whose new states are a pointwise function of its pre-activations and previous states.

    Pre-activation ``g`` of ``gates`` is ``b[g]``, plus ``(R h)[g]`` for the first ``recurrent_gates``, plus ``Wx`` for
    the last ``input_gates``. The first state is the one that recurs.

    Args:
        pointwise: ``(pre-activations, previous states) -> new states``, tuples of tensors ``[batch, heads, dim]``. Any
            function of PyTorch does, and runs in the reference; ``expression_cell`` makes cells for the kernels too.
        definition: the expression that ``pointwise`` was read from, set by ``expression_cell``.
    """

    recurrent_gates: int
    input_gates: int
    gates: int
    states: int
    pointwise: Callable[[Tensors, Tensors], Tensors]
    definition: str | None = None


def lstm(pre: Tensors, prev: Tensors) -> Tensors:
    """Gates i, f, z, o; states h, c."""
    i, f, z, o = pre
    c = torch.sigmoid(f) * prev[1] + torch.sigmoid(i) * torch.tanh(z)
    return torch.sigmoid(o) * torch.tanh(c), c


def slstm(pre: Tensors, prev: Tensors) -> Tensors:
    """Gates i, f, z, o; states h, c, n, m (Beck et al., "xLSTM", 2024, equations 8-17).

    The stabiliser m scales c and n alike, so it is a constant for the gradient. An element whose n is 0 is empty: it
    starts from its input gate alone, whatever the other elements of the batch do.
    """
    i, f, z, o = pre
    _, c, n, m = prev
    empty = n == 0
    log_f = logsigmoid(f) + m.detach()
    m = torch.where(empty, i, torch.maximum(log_f, i)).detach()
    i, f = torch.exp(i - m), torch.exp((log_f - m).masked_fill(empty, -torch.inf))
    c = f * c + i * torch.tanh(z)
    n = torch.clamp(f * n + i, min=1)
    return torch.sigmoid(o) * (c / n), c, n, m


def gru(pre: Tensors, prev: Tensors) -> Tensors:
    """Pre-activations g (recurrent part of the candidate), r, z, n (its input part); state h, as ``torch.nn.GRU``."""
    g, r, z, n = pre
    n = torch.tanh(n + torch.sigmoid(r) * g)
    return (n + torch.sigmoid(z) * (prev[0] - n),)


def elman(pre: Tensors, prev: Tensors) -> Tensors:
    """One tanh; state h."""
    return (torch.tanh(pre[0]),)


CELLS = {
    "lstm": Cell(4, 4, 4, 2, lstm),
    "slstm": Cell(4, 4, 4, 4, slstm),
    "gru": Cell(3, 3, 4, 1, gru),
    "elman": Cell(1, 1, 1, 1, elman),
}


class _ClipGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, limit: float) -> Tensor:
        ctx.limit = limit
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad.clamp(-ctx.limit, ctx.limit), None


def flashrnn_reference(
    Wx: Float[Tensor, "batch time input_gates heads dim"],
    R: Float[Tensor, "recurrent_gates heads dim dim"],
    b: Float[Tensor, "gates heads dim"],
    initial: Float[Tensor, "states batch heads dim"],
    cell: Cell,
    gradient_recurrent_clipval: float = 0.0,
    gradient_recurrent_cut: bool = False,
    forward_clipval: float = 0.0,
) -> Float[Tensor, "states batch time heads dim"]:
    """All states of all steps; a clip value of 0 is none. Differentiable any number of times."""
    batch, _, input_gates, heads, dim = Wx.shape
    weights = R.permute(1, 3, 0, 2).reshape(heads, dim, -1)
    first_input = cell.gates - cell.input_gates
    states, steps = initial.unbind(0), []
    for wx in Wx.unbind(1):
        h = states[0]
        if gradient_recurrent_cut:
            h = h.detach()
        elif gradient_recurrent_clipval:
            h = _ClipGradient.apply(h, gradient_recurrent_clipval)
        Rh = (h.transpose(0, 1) @ weights).view(heads, batch, -1, dim).permute(2, 1, 0, 3)
        pre = []
        for gate in range(cell.gates):
            total = b[gate]
            if gate < cell.recurrent_gates:
                total = total + Rh[gate]
            if gate >= first_input:
                total = total + wx[:, gate - first_input]
            pre.append(total)
        states = cell.pointwise(tuple(pre), states)
        if forward_clipval:
            states = (states[0].clamp(-forward_clipval, forward_clipval), *states[1:])
        steps.append(torch.stack([s.expand(batch, heads, dim) for s in states]))
    return torch.stack(steps, 2)
