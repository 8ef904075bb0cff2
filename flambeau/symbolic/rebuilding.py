"""Building a changed network without losing what the old one has learned."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from flambeau.symbolic.errors import SymbolicError
from flambeau.symbolic.node import Node

# weight dimensions that face the layer before, where they are not (output, input, ...)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED)


def rebuild(
    module: nn.Module, old: Node, new: Node, inherit: Literal["same_path_and_shape", "net2net"] = "same_path_and_shape"
) -> nn.Module:
    """Build `new` and carry over the weights of `module`, which was built from `old` and trained since.

    Args:
        inherit: ``"same_path_and_shape"`` copies every parameter and buffer whose name and shape are unchanged.
            ``"net2net"`` also fills grown ones: units are repeated in turn and their outgoing weights divided by the
            number of repeats, kernels grow by a rim of zeros, and inserted square layers start as the identity
            (Net2Net, Chen et al. 2016). The function is then kept for chains of linear and convolution layers with
            element-wise activations or batch norm (inserted layers: with ReLU, which is idempotent).

    Returns the new module, in the training mode and on the device and dtype of the old one; `module` is left as it is.

    Raises:
        SymbolicError: `module` is not what `old` builds, or `new` does not build a module.
        ValueError: unknown `inherit`.
    """
    if inherit not in ("same_path_and_shape", "net2net"):
        raise ValueError(f"inherit: expected 'same_path_and_shape' or 'net2net', got {inherit!r}")
    if isinstance(old.target, type) and type(module) is not old.target:
        raise SymbolicError(f"module: expected the {old.symbol.label} that old builds, got a {type(module).__name__}")
    grown = new.build()
    if not isinstance(grown, nn.Module):
        raise SymbolicError(f"new: expected a node that builds a module, got {grown!r}")
    learned = module.state_dict()
    sample = next((p for p in module.parameters()), None)
    if sample is not None:
        grown.to(device=sample.device, dtype=sample.dtype)
    grown.train(module.training)
    before = dict(module.named_modules())
    with torch.no_grad():
        for path, layer in grown.named_modules():
            own = dict(layer.named_parameters(recurse=False)) | dict(layer.named_buffers(recurse=False))
            if inherit == "net2net" and type(before.get(path)) is not type(layer):
                _start_as_identity(layer)
                continue
            for name, target in own.items():
                source = learned.get(f"{path}.{name}" if path else name)
                if source is None:
                    continue
                if source.shape == target.shape:
                    target.copy_(source)
                elif inherit == "net2net" and source.dim() == target.dim():
                    target.copy_(_widen(source, target, layer))
    return grown


def _widen(source: Tensor, target: Tensor, layer: nn.Module) -> Tensor:
    """`source` grown to the shape of `target`: units repeated, incoming weights shared out, kernels padded."""
    incoming = None
    if isinstance(layer, _LAYERS) and source.dim() >= 2:
        incoming = 0 if isinstance(layer, _TRANSPOSED) else 1
    units = 2 if isinstance(layer, _LAYERS) else source.dim()
    value = source
    for dim in range(min(units, source.dim())):
        size, wanted = source.shape[dim], target.shape[dim]
        if wanted < size:
            return target.clone()  # a layer that shrinks starts afresh
        index = torch.arange(wanted, device=source.device) % size
        value = value.index_select(dim, index)
        if dim == incoming and wanted != size:
            repeats = torch.bincount(index, minlength=size)[index].to(value.dtype)
            value = value / repeats.view([-1 if d == dim else 1 for d in range(value.dim())])
    rim: list[int] = []
    for dim in range(source.dim() - 1, units - 1, -1):
        more = target.shape[dim] - source.shape[dim]
        if more < 0 or more % 2:
            return target.clone()
        rim += [more // 2, more // 2]
    return nn.functional.pad(value, rim) if rim else value


def _start_as_identity(layer: nn.Module) -> None:
    """Make an inserted layer pass its input on, where its shape allows that."""
    if isinstance(layer, nn.Linear) and layer.in_features == layer.out_features:
        nn.init.eye_(layer.weight)
    elif isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) and layer.in_channels == layer.out_channels:
        if layer.groups != 1 or any(size % 2 == 0 for size in layer.kernel_size):
            return
        nn.init.dirac_(layer.weight)
    else:
        return
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
