"""Recurrent layers on the FlashRNN operator: heads, four cells, streaming, and drop-ins for torch.nn.LSTM and GRU."""

from typing import Any, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from flambeau.ops.flashrnn import CELLS, Cell, flashrnn

States = list[Float[Tensor, "states batch 1 heads dim"]]


class RecurrentLayer(nn.Module):
    """One direction of one layer: an input projection and a multi-head recurrence.

    Args:
        input_size: features of the input.
        hidden_size: units; split evenly over the heads, each of which recurs on its own units only.
        cell: ``"lstm"``, ``"slstm"``, ``"gru"``, ``"elman"``, or a cell of your own (``expression_cell``).
        options: passed to ``flambeau.ops.flashrnn.flashrnn`` (backend and clipping).
    """

    def __init__(self, input_size: int, hidden_size: int, num_heads: int, cell: str | Cell, **options: Any) -> None:
        super().__init__()
        if hidden_size % num_heads:
            raise ValueError(f"hidden_size {hidden_size} is not a multiple of num_heads {num_heads}")
        if isinstance(cell, str) and cell not in CELLS:
            raise ValueError(f"cell is {cell!r}; expected one of {', '.join(CELLS)}, or a Cell")
        self.cell, self.options, self.shape = cell, options, (num_heads, hidden_size // num_heads)
        kind, dim = CELLS[cell] if isinstance(cell, str) else cell, hidden_size // num_heads
        self.input_gates = kind.input_gates
        self.projection = nn.Linear(input_size, kind.input_gates * hidden_size, bias=False)
        self.recurrent = nn.Parameter(torch.empty(kind.recurrent_gates, num_heads, dim, dim))
        self.bias = nn.Parameter(torch.empty(kind.gates, num_heads, dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Uniform in ±1/sqrt(dim) as in torch.nn; forget gates of lstm and slstm start one higher, to remember."""
        bound = self.shape[1] ** -0.5
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)
        if self.cell in ("lstm", "slstm"):
            with torch.no_grad():
                self.bias[1] += 1

    def forward(
        self,
        x: Float[Tensor, "batch time features"],
        states: Float[Tensor, "states batch 1 heads dim"] | None = None,
        lengths: Int[Tensor, " batch"] | None = None,
    ) -> tuple[Float[Tensor, "batch time hidden"], Float[Tensor, "states batch 1 heads dim"]]:
        """The hidden state of every step, in the dtype of the projection, and the last states."""
        Wx = self.projection(x).unflatten(-1, (self.input_gates, *self.shape))
        every, last = flashrnn(Wx, self.recurrent, self.bias, states, self.cell, lengths=lengths, **self.options)
        return every[0].flatten(-2).to(Wx.dtype), last


class FlashRNN(nn.Module):
    """Stacked recurrent layers with heads, through one fused kernel a layer (Pöppel et al., "FlashRNN", 2024).

    Args:
        input_size: features of the input.
        hidden_size: units of each direction of each layer.
        num_heads: blocks of the block-diagonal recurrence.
        cell: ``"lstm"``, ``"slstm"`` (xLSTM), ``"gru"``, ``"elman"``, or a cell of your own (``expression_cell``).
        num_layers: layers, each fed with the outputs of the one below.
        bidirectional: also run every layer backwards in time and concatenate, as torch.nn.LSTM does.
        batch_first: inputs are [batch, time, features]; otherwise [time, batch, features].
        dropout: probability of zeroing an output between layers while training.
        backend, gradient_recurrent_clipval, gradient_recurrent_cut, forward_clipval: see ``flashrnn``.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_heads: int = 1,
        cell: str | Cell = "lstm",
        num_layers: int = 1,
        bidirectional: bool = False,
        batch_first: bool = True,
        dropout: float = 0.0,
        *,
        backend: str = "auto",
        gradient_recurrent_clipval: float | None = None,
        gradient_recurrent_cut: bool = False,
        forward_clipval: float | None = None,
    ) -> None:
        super().__init__()
        for name, value in [
            ("input_size", input_size),
            ("hidden_size", hidden_size),
            ("num_heads", num_heads),
            ("num_layers", num_layers),
        ]:
            if value < 1:
                raise ValueError(f"{name} is {value}; expected at least 1")
        self.input_size, self.batch_first, self.bidirectional = input_size, batch_first, bidirectional
        self.dropout = nn.Dropout(dropout)
        directions = 2 if bidirectional else 1
        self.layers = nn.ModuleList(
            RecurrentLayer(
                input_size if layer == 0 else directions * hidden_size,
                hidden_size,
                num_heads,
                cell,
                backend=backend,
                gradient_recurrent_clipval=gradient_recurrent_clipval,
                gradient_recurrent_cut=gradient_recurrent_cut,
                forward_clipval=forward_clipval,
            )
            for layer in range(num_layers)
            for _ in range(directions)
        )

    def forward(
        self,
        x: Float[Tensor, "batch time features"] | PackedSequence,
        states: States | None = None,
        lengths: Int[Tensor, " batch"] | None = None,
    ) -> tuple[Float[Tensor, "batch time outputs"] | PackedSequence, States]:
        """Outputs of the last layer and the last states of every layer (and direction, backward second).

        Args:
            x: the input, axes by ``batch_first``, or a ``PackedSequence`` (then a ``PackedSequence`` is returned).
            states: what an earlier call returned, to go on from there.
            lengths: valid steps of each row; outputs behind them are zero, last states those of the last valid step.
        """
        if isinstance(x, PackedSequence):
            padded, sizes = pad_packed_sequence(x, batch_first=True)
            outputs, last = self._run(padded, states, sizes)
            return pack_padded_sequence(outputs, sizes, batch_first=True, enforce_sorted=False), last
        if x.ndim != 3 or x.shape[2] != self.input_size:
            raise ValueError(f"x has shape {tuple(x.shape)}; expected three axes, the last of size {self.input_size}")
        outputs, last = self._run(x if self.batch_first else x.transpose(0, 1), states, lengths)
        return (outputs if self.batch_first else outputs.transpose(0, 1)), last

    def step(
        self, x: Float[Tensor, "batch features"], states: States | None = None
    ) -> tuple[Float[Tensor, "batch outputs"], States]:
        """One step of a stream: the output for one new input, and the states to pass with the next."""
        if self.bidirectional:
            raise ValueError("a bidirectional network cannot run step by step: it needs the future")
        outputs, last = self._run(x.unsqueeze(1), states, None)
        return outputs.squeeze(1), last

    def _run(self, x: Tensor, states: States | None, lengths: Tensor | None) -> tuple[Tensor, States]:
        if states is not None and len(states) != len(self.layers):
            raise ValueError(
                f"states holds {len(states)} tensors; expected {len(self.layers)}, one a layer and direction"
            )
        last: States = []
        directions = 2 if self.bidirectional else 1
        for first in range(0, len(self.layers), directions):
            if first:
                x = self.dropout(x)
            outputs = []
            for index in range(first, first + directions):
                reverse = index > first
                fed = _reverse(x, lengths) if reverse else x
                out, state = self.layers[index](fed, None if states is None else states[index], lengths)
                outputs.append(_reverse(out, lengths) if reverse else out)
                last.append(state)
            x = torch.cat(outputs, -1) if directions == 2 else outputs[0]
        return x, last


def _reverse(x: Float[Tensor, "batch time dim"], lengths: Int[Tensor, " batch"] | None) -> Tensor:
    """Reverse time within each row's valid steps; padding stays behind them."""
    if lengths is None:
        return x.flip(1)
    step = torch.arange(x.shape[1], device=x.device)
    source = torch.where(step < lengths.to(x.device)[:, None], lengths.to(x.device)[:, None] - 1 - step, step)
    return x.gather(1, source.unsqueeze(-1).expand_as(x))


class _DropIn(nn.Module):
    """Constructor and axes of torch.nn.RNNBase; states are [layers * directions, batch, hidden]."""

    cell: str

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        self.network = FlashRNN(
            input_size, hidden_size, 1, self.cell, num_layers, bidirectional, batch_first, dropout, backend=backend
        )

    @classmethod
    def _like(cls, module: nn.RNNBase, backend: str) -> Self:
        network = cls(
            module.input_size, module.hidden_size, module.num_layers, module.batch_first, float(module.dropout),
            module.bidirectional, backend=backend,
        )  # fmt: skip
        return network.to(module.weight_ih_l0.device, module.weight_ih_l0.dtype).train(module.training)


class FlashLSTM(_DropIn):
    """Drop-in for ``torch.nn.LSTM``: same arguments, calls and results."""

    cell = "lstm"

    @classmethod
    def from_torch(cls, module: nn.LSTM, backend: str = "auto") -> Self:
        """The same function as ``module``; the two biases of torch are summed."""
        if module.proj_size:
            raise ValueError(f"an LSTM with proj_size {module.proj_size} is not supported; expected 0")
        network = cls._like(module, backend)
        for layer, (w_ih, w_hh, b_ih, b_hh) in zip(network.network.layers, _torch_weights(module)):
            _assign(layer, w_ih, _gates(w_hh, 4), _gates(b_ih + b_hh, 4))  # torch's i, f, g, o are i, f, z, o here
        return network

    def forward(
        self, x: Tensor | PackedSequence, hx: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor | PackedSequence, tuple[Tensor, Tensor]]:
        """``torch.nn.LSTM.forward``: outputs and (h, c), each [layers * directions, batch, hidden]."""
        states = None if hx is None else list(torch.stack(hx, 1)[:, :, :, None, None].unbind(0))
        outputs, last = self.network(x, states)
        h, c = torch.stack(last, 1)[:, :, :, 0, 0].unbind(0)
        return outputs, (h, c)


class FlashGRU(_DropIn):
    """Drop-in for ``torch.nn.GRU``: same arguments, calls and results."""

    cell = "gru"

    @classmethod
    def from_torch(cls, module: nn.GRU, backend: str = "auto") -> Self:
        """The same function as ``module``; the candidate's two biases stay apart, the gates' are summed."""
        network = cls._like(module, backend)
        for layer, (w_ih, w_hh, b_ih, b_hh) in zip(network.network.layers, _torch_weights(module)):
            (r_in, z_in, n_in), (r_h, z_h, n_h) = _gates(b_ih, 3), _gates(b_hh, 3)
            recurrent = _gates(w_hh, 3)[[2, 0, 1]]  # torch: r, z, n; here: g, r, z
            _assign(layer, w_ih, recurrent, torch.stack([n_h, r_in + r_h, z_in + z_h, n_in]))
        return network

    def forward(self, x: Tensor | PackedSequence, hx: Tensor | None = None) -> tuple[Tensor | PackedSequence, Tensor]:
        """``torch.nn.GRU.forward``: outputs and h [layers * directions, batch, hidden]."""
        states = None if hx is None else list(hx[:, None, :, None, None].unbind(0))
        outputs, last = self.network(x, states)
        return outputs, torch.stack(last)[:, 0, :, 0, 0]


def _torch_weights(module: nn.RNNBase) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
    weights = []
    for layer in range(module.num_layers):
        for suffix in ("", "_reverse") if module.bidirectional else ("",):
            w_ih, w_hh = (getattr(module, f"weight_{kind}_l{layer}{suffix}").detach() for kind in ("ih", "hh"))
            none = w_ih.new_zeros(w_ih.shape[0])
            b_ih, b_hh = (
                getattr(module, f"bias_{kind}_l{layer}{suffix}").detach() if module.bias else none
                for kind in ("ih", "hh")
            )
            weights.append((w_ih, w_hh, b_ih, b_hh))
    return weights


def _gates(x: Tensor, count: int) -> Tensor:
    return x.unflatten(0, (count, -1))


@torch.no_grad()
def _assign(layer: nn.Module, projection: Tensor, recurrent: Tensor, bias: Tensor) -> None:
    layer.projection.weight.copy_(projection)
    layer.recurrent.copy_(recurrent.unsqueeze(1))
    layer.bias.copy_(bias.unsqueeze(1))
