"""Feature maps of a network by the names of its modules, found by running it once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from flambeau.nn.sparse.context import SparseContext


@dataclass(frozen=True)
class Tap:
    """A feature map: the module that gives it, the pixels a position stands for along each axis, and its channels."""

    name: str
    stride: int
    channels: int


def find_taps(network: nn.Module, channels: int, size: Sequence[int], names: Sequence[str] | None = None) -> list[Tap]:
    """The network's feature maps from fine to coarse, one a resolution, found by a run on a blank image.

    Of the modules whose output has a resolution, the largest block is taken (a stage), or the last layer where there
    is no block. `names` takes those instead.

    Args:
        network: in any mode; its mode and state stay as they are.
        channels, size: of the image, without the batch axis.
        names: modules, as in `named_modules`.

    Raises:
        ValueError: an unknown name, a size that is no multiple of the network's stride, or a stride that is not a power
            of two.
    """
    known = dict(network.named_modules())
    for name in names or ():
        if name not in known:
            some = ", ".join(list(known)[1:9])
            raise ValueError(f"no module {name!r} in {type(network).__name__}; there are {some}, ...")
    outputs = _outputs(network, channels, size)
    for name in names or ():
        if name not in outputs:
            raise ValueError(f"module {name!r} gives no feature map of {len(size)} spatial axes")
    if not outputs:
        raise ValueError(f"{type(network).__name__} has no module that gives a feature map")
    coarsest = min(outputs, key=lambda name: math.prod(outputs[name][1:]))
    strides = {name: _stride(size, shape[1:]) for name, shape in outputs.items()}
    for name in names or [coarsest]:
        if strides[name] is None:
            map_size = " x ".join(map(str, outputs[name][1:]))
            raise ValueError(
                f"module {name!r} gives {map_size} positions for {' x '.join(map(str, size))} pixels; the downsample "
                f"ratio must be a power of two, the same along all axes, and divide the image"
            )
    chosen: dict[int, str] = {}
    for name in names or outputs:
        # Inside a block with channels last an output may look like a map, but hardly like one of a square ratio.
        stride = strides[name]
        if stride is None:
            continue
        before = chosen.get(stride)
        if before is None or _rank(known[name], name) >= _rank(known[before], before):
            chosen[stride] = name
    if names is not None and len(chosen) < len(names):
        raise ValueError(f"names must be of different resolutions, got strides { {n: strides[n] for n in names} }")
    largest = max(chosen)
    if any(n % largest for n in size):
        raise ValueError(f"input size {' x '.join(map(str, size))} is not divisible by the network's stride, {largest}")
    return [Tap(chosen[stride], stride, outputs[chosen[stride]][0]) for stride in sorted(chosen)]


def record_taps(network: nn.Module, names: Sequence[str], context: SparseContext) -> None:
    """Have the named modules of a sparse network leave their outputs in ``context.active.features``."""
    for name in names:
        # A partial is copied along with the network and its context; a closure would keep the original's context.
        network.get_submodule(name).register_forward_hook(partial(_record, name, context))


def _record(name: str, context: SparseContext, module: nn.Module, inputs: Any, output: Tensor) -> None:
    if context.active is not None:
        context.active.features[name] = output


def _outputs(network: nn.Module, channels: int, size: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """Channels and positions of every module's output that may be a feature map, in the order they are finished."""
    outputs: dict[str, tuple[int, ...]] = {}

    def note(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.ndim == 2 + len(size) and max(output.shape[2:]) > 1:
            outputs.pop(name, None)  # a module that runs again goes to the end
            outputs[name] = tuple(output.shape[1:])

    handles = [m.register_forward_hook(partial(note, name)) for name, m in network.named_modules() if name]
    modes = [(module, module.training) for module in network.modules()]
    reference = next(network.parameters())
    try:
        network.eval()
        with torch.no_grad():
            network(torch.zeros(1, channels, *size, device=reference.device, dtype=reference.dtype))
    finally:
        for module, mode in modes:
            module.training = mode
        for handle in handles:
            handle.remove()
    return outputs


def _rank(module: nn.Module, name: str) -> tuple[bool, int]:
    """Blocks before single layers; of blocks the one with the most parameters, of layers the outermost."""
    block = next(module.children(), None) is not None
    return block, sum(p.numel() for p in module.parameters()) if block else -name.count(".")


def _stride(size: Sequence[int], positions: Sequence[int]) -> int | None:
    """The power of two that makes `positions` of `size` pixels, rounded up or down; None if there is none."""
    for power in range(max(size).bit_length()):
        stride = 2**power
        if all(m in (n // stride, -(-n // stride)) for n, m in zip(size, positions)):
            return stride
    return None
