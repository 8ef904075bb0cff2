"""Convolution and batch normalisation with fixed statistics, as one convolution whose weights are made on the fly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

Precision = Literal["input", "fp32"]
TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def conv_bn_tune(
    x: Float[Tensor, "batch in *size"],
    conv: nn.Module,
    bn: _BatchNorm,
    output_size: Sequence[int] | None = None,
    *,
    precision: Precision = "input",
) -> Float[Tensor, "batch out *size2"]:
    """``bn(conv(x))`` with the running statistics, computed by a single convolution.

    Equal to the two modules in evaluation mode up to rounding, in value and in all gradients, because
    c (w * x) = (c w) * x. Autograd keeps the input and the scaled weights instead of the input and the convolution's
    output (Tune mode; You et al. 2023, arXiv 2305.11624).

    Args:
        x: input of the convolution (``nn.Linear``: [batch, in]).
        conv: ``nn.Linear``, ``nn.Conv1d`` to ``3d`` or ``nn.ConvTranspose1d`` to ``3d``; any groups, stride, dilation
            and padding mode.
        bn: ``nn.BatchNorm1d`` to ``3d`` or ``nn.SyncBatchNorm`` with running statistics; its `training` is not read.
        output_size: of a transposed convolution, as in its own call.
        precision: ``"input"`` scales the weights in the parameters' own dtype, ``"fp32"`` in at least float32; the
            result is rounded to the weights' dtype either way.

    Raises:
        TypeError: another kind of module.
        ValueError: `bn` has no running statistics, or not as many features as `conv` has outputs.
    """
    weight, bias = fused_parameters(conv, bn, precision=precision)
    if isinstance(conv, _ConvTransposeNd):
        dims = len(conv.kernel_size)
        wanted = None if output_size is None else list(output_size)
        padding = conv._output_padding(x, wanted, conv.stride, conv.padding, conv.kernel_size, dims, conv.dilation)
        return TRANSPOSED[dims](x, weight, bias, conv.stride, conv.padding, padding, conv.groups, conv.dilation)
    if isinstance(conv, _ConvNd):
        return conv._conv_forward(x, weight, bias)
    return F.linear(x, weight, bias)


def fused_parameters(
    conv: nn.Module, bn: _BatchNorm, *, precision: Precision = "input"
) -> tuple[Tensor, Float[Tensor, " out"]]:
    """Weight c w and bias beta + c (b - mu) of the convolution that equals ``bn(conv(x))``, with their gradients.

    c = gamma / sqrt(var + eps), one for each output channel.

    Raises:
        TypeError, ValueError: as :func:`conv_bn_tune`.
    """
    if not isinstance(conv, (nn.Linear, _ConvNd)):
        raise TypeError(f"conv must be a linear layer or a (transposed) convolution, got {type(conv).__name__}")
    if not isinstance(bn, _BatchNorm):
        raise TypeError(f"bn must be a batch normalisation, got {type(bn).__name__}")
    if precision not in ("input", "fp32"):
        raise ValueError(f"precision must be 'input' or 'fp32', got {precision!r}")
    if bn.running_mean is None or bn.running_var is None:
        raise ValueError("bn has no running statistics (track_running_stats=False); there is nothing fixed to fuse")
    if outputs(conv) != bn.num_features:
        raise ValueError(f"conv has {outputs(conv)} outputs, bn {bn.num_features} features; expected as many")
    weight = conv.weight  # read once: a parametrization computes it anew at every access
    return fuse(
        weight, conv.bias, bn.weight, bn.bias, bn.running_mean, bn.running_var, bn.eps,
        groups=transposed_groups(conv), precision=precision,
    )  # fmt: skip


def fuse(
    weight: Tensor,
    bias: Float[Tensor, " out"] | None,
    gamma: Float[Tensor, " out"] | None,
    beta: Float[Tensor, " out"] | None,
    mean: Float[Tensor, " out"],
    var: Float[Tensor, " out"],
    eps: float,
    *,
    groups: int | None = None,
    precision: Precision = "input",
) -> tuple[Tensor, Float[Tensor, " out"]]:
    """The same from tensors; `groups` as for :func:`scale_outputs`."""
    dtype = weight.dtype
    if precision == "fp32":
        wide = torch.promote_types(dtype, torch.float32)
        weight, mean, var = weight.to(wide), mean.to(wide), var.to(wide)
    scale = torch.rsqrt(var + eps)
    if gamma is not None:
        scale = gamma * scale
    shift = scale * (-mean if bias is None else bias - mean)
    if beta is not None:
        shift = shift + beta
    return scale_outputs(weight, scale, groups).to(dtype), shift.to(dtype)


def scale_outputs(weight: Tensor, scale: Float[Tensor, " out"], groups: int | None = None) -> Tensor:
    """A weight with each output channel times its factor; `groups` for the layout of a transposed convolution.

    That layout is [in, out / groups, ...]: the channels of group i are rows i of a view
    [groups, in / groups, out / groups, ...].
    """
    ones = (1,) * (weight.ndim - 2)
    if groups is None:
        return weight * scale.view(-1, 1, *ones)
    if groups == 1:
        return weight * scale.view(1, -1, *ones)
    split = weight.view(groups, -1, weight.shape[1], *weight.shape[2:])
    return (split * scale.view(groups, 1, -1, *ones)).view(weight.shape)


def coefficients(bn: _BatchNorm) -> Float[Tensor, " out"]:
    """c = gamma / sqrt(var + eps) of each channel, detached: the factor between a filter and its fused form."""
    if bn.running_var is None:
        raise ValueError("bn has no running statistics (track_running_stats=False)")
    scale = torch.rsqrt(bn.running_var + bn.eps)
    return scale if bn.weight is None else bn.weight.detach() * scale


def outputs(conv: nn.Module) -> int:
    """Output channels of a linear layer or a convolution."""
    return conv.out_features if isinstance(conv, nn.Linear) else conv.out_channels


def transposed_groups(conv: nn.Module) -> int | None:
    """Groups of a transposed convolution; None for every other layer."""
    return conv.groups if isinstance(conv, _ConvTransposeNd) else None
