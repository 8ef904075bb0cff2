"""PyTorch's own pass for ``torch.compile``, switched on and mended for transposed convolutions with groups."""

from __future__ import annotations

import importlib
from typing import Any

from torch import Tensor

from flambeau.nn.conv_bn import conv_bn_tune, fuse


def enable_inductor_pass() -> None:
    """Let ``torch.compile`` run convolution and fixed normalisation as one convolution, in the whole process.

    The formula of torch up to 2.13 takes the second axis of a transposed convolution's weight for all its output
    channels; with groups it holds those of one group, and compiling fails. Both forms of the formula are replaced.
    """
    module, config = _pass_and_config()
    if module.efficient_conv_bn_eval is not _of_modules:
        _original.update({name: getattr(module, name) for name in _ours})
        for name, function in _ours.items():
            setattr(module, name, function)
    config.efficient_conv_bn_eval_fx_passes = True


def disable_inductor_pass() -> None:
    """Undo :func:`enable_inductor_pass`; what is compiled already stays."""
    module, config = _pass_and_config()
    for name, function in _original.items():
        setattr(module, name, function)
    _original.clear()
    config.efficient_conv_bn_eval_fx_passes = False


def _pass_and_config() -> tuple[Any, Any]:
    # Importing inductor takes seconds; only this way of running needs it.
    names = ("torch._inductor.fx_passes.efficient_conv_bn_eval", "torch._inductor.config")
    return importlib.import_module(names[0]), importlib.import_module(names[1])


def _of_modules(bn: Any, conv: Any, x: Tensor) -> Tensor:
    return conv_bn_tune(x, conv, bn)


def _of_tensors(
    gamma: Tensor | None, beta: Tensor | None, mean: Tensor, var: Tensor, eps: float,
    conv: Any, weight: Tensor, bias: Tensor | None, x: Tensor, others: tuple[Any, ...],
) -> Tensor:  # fmt: skip
    groups = None
    if "conv_transpose" in str(conv):  # others: stride, padding, output_padding, groups, dilation
        groups = others[3] if len(others) > 3 else 1
    return conv(x, *fuse(weight, bias, gamma, beta, mean, var, eps, groups=groups), *others)


_ours: dict[str, Any] = {
    "efficient_conv_bn_eval": _of_modules,
    "efficient_conv_bn_eval_decomposed": _of_tensors,
}
_original: dict[str, Any] = {}
