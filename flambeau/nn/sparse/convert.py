"""Make a convolutional network sparse, whatever its own code looks like."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.modules.lazy import LazyModuleMixin

from flambeau.nn.sparse import layers
from flambeau.nn.sparse.context import SparseContext

CONVOLUTIONS = (nn.Conv2d, nn.Conv3d)
LOCAL_POOLS = (nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool2d, nn.AvgPool3d)
ADAPTIVE_POOLS = (nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d)
# f(0) = 0, so hidden positions stay 0 without help.
ZERO_AT_ZERO = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish,
    nn.Hardswish, nn.Hardtanh, nn.Tanh, nn.Softsign, nn.Identity, nn.Dropout, nn.Dropout2d, nn.Dropout3d, nn.Flatten,
    nn.ZeroPad2d, nn.ZeroPad3d,
)  # fmt: skip
NOT_ZERO_AT_ZERO = (nn.Sigmoid, nn.Hardsigmoid, nn.Softplus)
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)


def to_sparse(cnn: nn.Module, context: SparseContext | None = None) -> nn.Module:
    """A copy of `cnn` that, within ``with context(mask):``, computes from the visible cells of its images only.

    Under a mask ([batch, *grid] of cells, True where visible) hidden pixels are not read and hidden positions of every
    map are 0; outside a context the copy is the dense network, so it needs no converting back. Its parameters, buffers
    and their names are those of `cnn`. Layers are found wherever they are: convolutions (strided, dilated, grouped),
    batch, synchronised batch, group, instance and layer norm (channels first or last), pools, and linear layers on
    [batch, *size, channels]. As in SparK (Tian et al. 2023, arXiv 2301.03580), local pools see hidden positions as 0.

    What is saved: norms, and on a CPU 1x1 convolutions and linear layers, compute and keep visible positions only.
    Wider convolutions compute everywhere and hide afterwards, because cutting the visible cells out with their
    neighbours costs more than it saves (measured at 60 % hidden, 3x3 and depth-wise 7x7). ResNet-50 at 224 pixels and
    60 % hidden: 2.8 of 4.1 G multiplications and 143 of 172 MB kept for the backward pass of two images.

    cnn: 2-D or 3-D, [batch, channels, *size] in; strides only have to keep cells whole. Operations that its `forward`
    calls as functions are left as they are; those that are not 0 at 0 or move positions are beyond what can be seen.
    context: None makes a new one. It is the result's `sparse_context` either way.

    Raises:
        TypeError: a layer that has no sparse counterpart; the message names it.
        ValueError: `cnn` was converted before.
    """
    context = SparseContext() if context is None else context
    rules = {name: _rule(name, module) for name, module in cnn.named_modules()}
    network = copy.deepcopy(cnn)
    for name, module in list(network.named_modules()):
        rule = rules[name]
        if rule is not None:
            _mix(module, rule, context, f"layer {name!r} ({type(module).__name__})")
    # The first convolution too, as networks are also entered by other methods (`stages`, `forward_features`).
    stem = next((module for module in network.modules() if isinstance(module, CONVOLUTIONS)), network)
    if stem is not network:
        _mix(stem, layers.MaskedInput, context, stem.sparse_name)
    _mix(network, layers.MaskedInput, context, f"the input of {type(cnn).__name__}")
    return network


def _rule(name: str, module: nn.Module) -> type[layers.SparseLayer] | None:
    """The class that makes `module` sparse; None for what may stay as it is."""
    place = f"layer {name!r} ({type(module).__name__})"
    if isinstance(module, layers.SparseLayer):
        raise ValueError(f"{place} is sparse already; convert the dense network")
    if isinstance(module, LazyModuleMixin):
        raise TypeError(f"{place} has no parameters yet; run the network once before it is converted")
    if isinstance(module, CONVOLUTIONS):
        return layers.Pointwise if _pointwise(module) else layers.MaskedOutput
    if isinstance(module, LOCAL_POOLS + ADAPTIVE_POOLS):
        if getattr(module, "return_indices", False):
            raise TypeError(f"{place} returns indices, which has no sparse counterpart")
        return layers.GlobalPool if isinstance(module, ADAPTIVE_POOLS) else layers.MaskedOutput
    if isinstance(module, (nn.GroupNorm, _InstanceNorm)) and not isinstance(module, nn.InstanceNorm1d):
        return layers.ActiveSampleNorm
    if isinstance(module, _BatchNorm):
        return layers.ActiveBatchNorm
    if isinstance(module, nn.LayerNorm) or _is_layer_norm(module):
        if len(module.normalized_shape) != 1:
            raise TypeError(f"{place} normalises over {tuple(module.normalized_shape)}, not over channels alone")
        return layers.MaskedLayerNorm
    if isinstance(module, nn.Linear):
        return layers.PointwiseLinear
    if isinstance(module, NOT_ZERO_AT_ZERO):
        return layers.MaskedOutput
    parametrization = type(module).__module__.startswith("torch.nn.utils.")  # makes weights, sees no map
    if isinstance(module, ZERO_AT_ZERO + CONTAINERS) or parametrization:
        return None
    leaf = next(module.children(), None) is None
    of_torch = type(module).__module__.startswith("torch.nn.")
    holds = next(module.parameters(), None) is not None or next(module.buffers(), None) is not None
    if of_torch or (leaf and holds) or isinstance(module, _ConvNd):
        raise TypeError(f"{place} has no sparse counterpart")
    return None  # a block of other layers, or a layer without state: what it calls is converted or acts by position


def _pointwise(conv: nn.Conv2d | nn.Conv3d) -> bool:
    """Whether the outcome at a position is the weight times one input; a subclass may do more in its own forward."""
    padded = conv.padding not in ("same", "valid") and any(conv.padding)
    own = type(conv).forward not in (nn.Conv2d.forward, nn.Conv3d.forward)
    return max(conv.kernel_size) == 1 and conv.groups == 1 and not padded and not own


def _is_layer_norm(module: nn.Module) -> bool:
    """The ConvNeXt authors' own layer norm, which is not a subclass of PyTorch's."""
    return hasattr(module, "normalized_shape") and getattr(module, "data_format", "") in (
        "channels_first",
        "channels_last",
    )


def _mix(module: nn.Module, rule: type[layers.SparseLayer], context: SparseContext, name: str) -> None:
    module.__class__ = _mixed(rule, type(module))  # type: ignore[arg-type]
    module.sparse_context, module.sparse_name = context, name


@cache
def _mixed(rule: Any, kind: Any) -> Any:
    return type(f"Sparse{kind.__name__.removeprefix('Sparse')}", (rule, kind), {})
