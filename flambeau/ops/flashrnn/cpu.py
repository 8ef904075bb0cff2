"""FlashRNN on the CPU: the compiled kernel of ``cpu.cpp``, called through ctypes on contiguous tensors."""

import ctypes
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flambeau.ops import build
from flambeau.ops.flashrnn import generated, tiling

NUMBERS = {"lstm": 0, "slstm": 1, "gru": 2, "elman": 3}


@functools.cache
def _kernels(isa: str, definition: str = "", bf16: bool = False) -> tuple[Any, Any]:
    """Both passes of the built-in cells, or of the one cell an expression defines, in one precision."""
    prelude = generated.cpp(definition, bf16) if definition else ""
    library: Any = build.load(Path(__file__).with_name("cpu.cpp"), isa, prelude)
    pointer, size, real = ctypes.c_void_p, ctypes.c_int, ctypes.c_float
    library.flashrnn_forward.argtypes = [size] * 8 + [real] + [pointer] * 6
    library.flashrnn_backward.argtypes = [size] * 8 + [real, real, size] + [pointer] * 7
    return library.flashrnn_forward, library.flashrnn_backward


def _find(function: str, bf16: bool) -> tuple[Any, Any, int]:
    if function in NUMBERS:
        return *_kernels(build.instruction_set()), NUMBERS[function]
    return *_kernels(build.instruction_set(), function, bf16), 0


@functools.cache
def loader(function: str, bf16: bool) -> Callable[[], object]:
    """What builds a cell's kernel for the current instruction set, if that has not happened yet.

    The result raises ``BuildError``, and is the same for all the built-in cells, which are one library.
    """
    return load if function in NUMBERS else functools.partial(_find, function, bf16)


def load() -> None:
    """Build the kernel of the built-in cells; raises ``BuildError``."""
    _kernels(build.instruction_set())


def forward(
    Wx: Tensor, R: Tensor, b: Tensor, initial: Tensor, states: Tensor, saved: Tensor, function: str, clip: float
) -> None:
    """Fill states [S,B,T,N,D] and, unless it is empty, saved [B,T,SAVED,N,D]."""
    batch, time, _, heads, dim = Wx.shape
    bf16 = Wx.dtype == torch.bfloat16
    run, _, number = _find(function, bf16)
    run(
        number, bf16, batch, time, heads, dim,
        *tiling.choose(batch, time, heads, dim, R.shape[0], torch.get_num_threads()), clip,
        Wx.data_ptr(), R.data_ptr(), b.data_ptr(), initial.data_ptr(), states.data_ptr(), saved.data_ptr(),
    )  # fmt: skip


def backward(
    dstates: Tensor, R: Tensor, initial: Tensor, states: Tensor, saved: Tensor, delta: Tensor, dinitial: Tensor,
    function: str, recurrent_clip: float, cut: bool, clip: float,
) -> None:  # fmt: skip
    """Fill delta [B,T,G,N,D] and dinitial [S,B,N,D] (zero on entry)."""
    _, batch, time, heads, dim = states.shape
    bf16 = R.dtype == torch.bfloat16
    _, run, number = _find(function, bf16)
    run(
        number, bf16, batch, time, heads, dim,
        *tiling.choose(batch, time, heads, dim, R.shape[0], torch.get_num_threads()), clip, recurrent_clip, cut,
        R.data_ptr(), initial.data_ptr(), states.data_ptr(), saved.data_ptr(), dstates.data_ptr(),
        delta.data_ptr(), dinitial.data_ptr(),
    )  # fmt: skip
