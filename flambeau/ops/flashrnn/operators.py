"""FlashRNN's kernels as operators that PyTorch can trace, export and differentiate once."""

from typing import Any

import torch
from torch import Tensor

from flambeau.ops import triton_kernels
from flambeau.ops.flashrnn import cpu, generated, generated_gpu
from flambeau.ops.flashrnn.expression import defined_cell
from flambeau.ops.flashrnn.reference import CELLS

GPU = "flambeau.ops.flashrnn.gpu"
SAVED = {"lstm": 4, "slstm": 4, "gru": 4, "elman": 0}  # values a unit keeps for the backward pass


MOST_ON_CHIP = 128 << 10  # of the 227 KiB of shared memory of an H100 block; the rest is for operands of products


def _gates(function: str) -> int:
    return (CELLS[function] if function in CELLS else defined_cell(function)).gates


def _module(backend: str, function: str, device: torch.device) -> Any:
    """The module whose ``forward`` and ``backward`` run the cell."""
    if backend == "cpu":
        return cpu
    if function in CELLS:
        return triton_kernels.kernels(GPU, device)
    return triton_kernels.generated(generated_gpu.module_path(function), device.type)


def obstacle(backend: str, Wx: Tensor, function: str) -> str | None:
    """Why ``backend`` ("cpu" or "triton") cannot run this cell (a name or a definition) on these inputs, or None."""
    dim = Wx.shape[-1]
    if backend == "cpu":
        if Wx.device.type != "cpu":
            return f"it needs CPU tensors, Wx is on {Wx.device}"
        if Wx.dtype not in (torch.float32, torch.bfloat16):
            return f"it needs float32 or bfloat16, Wx is {Wx.dtype}"
        return None
    if not triton_kernels.installed():
        return "Triton is not installed (pip install triton)"
    if dim & (dim - 1) or not 16 <= dim <= 128:
        return f"it needs a head size that is a power of two from 16 to 128, Wx has {dim}"
    cell = CELLS[function] if function in CELLS else defined_cell(function)
    size = cell.recurrent_gates * dim**2 * Wx.element_size()
    if size > MOST_ON_CHIP:
        return f"it keeps R of a head on the chip, at most {MOST_ON_CHIP >> 10} KiB; here that is {size >> 10}"
    if Wx.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"it needs float32, bfloat16 or float16, Wx is {Wx.dtype}"
    if Wx.device.type == "cpu" and Wx.dtype == torch.bfloat16:
        return "Triton's interpreter cannot multiply bfloat16"
    return None


def _outputs(Wx: Tensor, initial: Tensor, function: str, train: bool) -> tuple[Tensor, Tensor]:
    batch, time, _, heads, dim = Wx.shape
    saved = SAVED[function] if function in SAVED else generated.saved_values(function)
    return (
        initial.new_empty(initial.shape[0], batch, time, heads, dim),
        initial.new_empty(batch, time, saved if train else 0, heads, dim),
    )


def _forward(
    Wx: Tensor,
    R: Tensor,
    b: Tensor,
    initial: Tensor,
    function: str,
    gradient_recurrent_clipval: float,
    gradient_recurrent_cut: bool,
    forward_clipval: float,
    train: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    Wx, R, b, initial = Wx.contiguous(), R.contiguous(), b.contiguous(), initial.contiguous()
    states, saved = _outputs(Wx, initial, function, train)
    module = _module(backend, function, Wx.device)
    with torch.cuda.device_of(Wx):  # a Triton kernel starts on the current device
        module.forward(Wx, R, b, initial, states, saved, function, forward_clipval)
    return states, saved


def _backward(
    dstates: Tensor,
    R: Tensor,
    initial: Tensor,
    states: Tensor,
    saved: Tensor,
    function: str,
    gradient_recurrent_clipval: float,
    gradient_recurrent_cut: bool,
    forward_clipval: float,
    backend: str,
) -> tuple[Tensor, Tensor]:
    dstates, R, initial = dstates.contiguous(), R.contiguous(), initial.contiguous()
    _, batch, time, heads, dim = states.shape
    delta, dinitial = states.new_empty(batch, time, _gates(function), heads, dim), torch.zeros_like(initial)
    module = _module(backend, function, states.device)
    options = gradient_recurrent_clipval, gradient_recurrent_cut, forward_clipval
    with torch.cuda.device_of(states):
        module.backward(dstates, R, initial, states, saved, delta, dinitial, function, *options)
    return delta, dinitial


# Wx and R share a dtype; b and initial are float32. Returns float32 states [S,B,T,N,D] and what backward needs.
flashrnn_forward = torch.library.custom_op("flambeau::flashrnn", _forward, mutates_args=())
# Returns the gradients of all pre-activations [B,T,G,N,D] and of the initial states [S,B,N,D].
flashrnn_backward = torch.library.custom_op("flambeau::flashrnn_backward", _backward, mutates_args=())


@flashrnn_forward.register_fake
def _forward_fake(Wx, R, b, initial, function, clipval, cut, forward_clipval, train, backend):
    return _outputs(Wx, initial, function, train)


@flashrnn_backward.register_fake
def _backward_fake(dstates, R, initial, states, saved, function, clipval, cut, forward_clipval, backend):
    _, batch, time, heads, dim = states.shape
    return states.new_empty(batch, time, _gates(function), heads, dim), torch.empty_like(initial)


def _weight_gradient(delta: Tensor, initial: Tensor, states: Tensor, gates: int) -> Tensor:
    """dR [gates,N,D,D]: one matrix product over all steps and rows of every head instead of one update a step."""
    heads, dim = states.shape[3:]
    h = torch.cat([initial[0].unsqueeze(1), states[0, :, :-1]], 1).flatten(0, 1).transpose(0, 1)
    left = delta[:, :, :gates].flatten(0, 1).permute(2, 0, 1, 3).reshape(heads, -1, gates * dim)
    return (left.mT @ h).view(heads, gates, dim, dim).transpose(0, 1)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    Wx, R, _, initial, *options = inputs
    ctx.options = (*options[:4], options[5])
    ctx.dtype, ctx.input_gates = Wx.dtype, Wx.shape[2]
    ctx.save_for_backward(R, initial, *output)
    ctx.set_materialize_grads(False)  # nobody differentiates the saved values: do not fill zeros for them


def _differentiate(ctx: Any, dstates: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    R, initial, states, saved = ctx.saved_tensors
    # The operator costs 50 us more than its function; it is needed while tracing and to refuse second derivatives.
    plain = type(dstates) is Tensor and not torch.is_grad_enabled()
    delta, dinitial = (_backward if plain else flashrnn_backward)(dstates, R, initial, states, saved, *ctx.options)
    dWx = delta[:, :, delta.shape[2] - ctx.input_gates :].to(ctx.dtype)
    dR = _weight_gradient(delta, initial, states, R.shape[0]).to(R.dtype) if ctx.needs_input_grad[1] else None
    db = delta.sum((0, 1)) if ctx.needs_input_grad[2] else None
    return (dWx, dR, db, dinitial, *[None] * 6)


def _refuse(ctx: Any, *grads: Tensor) -> None:
    raise RuntimeError("flashrnn: second derivatives exist only with backend='reference', not in the fused kernels")


flashrnn_forward.register_autograd(_differentiate, setup_context=_keep)
flashrnn_backward.register_autograd(_refuse)


class _Eager(torch.autograd.Function):
    """The operator without its dispatch, which costs as much as a short sequence takes.

    The context is kept in `forward`: with a `setup_context` torch would read the signature anew in every call.
    """

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        output = _forward(*inputs)
        _keep(ctx, inputs, output)
        return output

    backward = staticmethod(_differentiate)


def run(Wx: Tensor, *arguments: Any) -> Tensor:
    """States [S,B,T,N,D] for the arguments of ``flashrnn_forward``, which is what tracing sees."""
    traced = torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
    if type(Wx) is not Tensor or traced:
        return flashrnn_forward(Wx, *arguments)[0]
    train = arguments[-2]
    return (_Eager.apply if train else _forward)(Wx, *arguments)[0]
