"""Smaller learning rates for earlier layers."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

BLOCK = re.compile(r"(?P<prefix>(?:.*\.)?)(?:blocks\.(?P<block>\d+)|layer(?P<stage>\d+)\.(?P<place>\d+))\.")
STEM = ("cls_token", "mask_token", "pos_embed", "patch_embed", "conv1", "bn1")


def layer_depths(names: Sequence[str]) -> list[int]:
    """Depth of each named parameter: 0 for the stem, then 1, 2, ... for the blocks, one more for all that follows.

    Names are timm's of a ViT (``blocks.3.attn.qkv.weight``; stem: class token, positions, patches) or torchvision's of
    a ResNet (``layer2.0.conv1.weight``; stem: ``conv1``, ``bn1``), with any prefix (``backbone.blocks...``). Final
    normalisation and heads come after the last block, as in BEiT (arXiv 2106.08254, appendix H).

    Raises:
        ValueError: no parameter of a block.
    """
    blocks: dict[str, tuple[str, int, int]] = {}
    for name in names:
        found = BLOCK.match(name)
        if found:
            stage, place = (found["block"], 0) if found["block"] else (found["stage"], found["place"])
            blocks[name] = (found["prefix"], int(stage), int(place))
    if not blocks:
        raise ValueError(
            "layer decay needs parameters of blocks (blocks.N of a ViT, layerN.M of a ResNet), "
            f"got {', '.join(names[:5]) or 'none'}"
        )
    prefixes = tuple({prefix for prefix, _, _ in blocks.values()})
    depth_of = {block: depth for depth, block in enumerate(sorted(set(blocks.values())), start=1)}
    stems = tuple(prefix + stem for prefix in prefixes for stem in STEM)
    last = len(depth_of) + 1
    return [depth_of[blocks[name]] if name in blocks else 0 if name.startswith(stems) else last for name in names]


@dataclass(frozen=True)
class LayerDecay:
    """An optimiser whose rate for a layer is ``decay ** (layers above it)`` of its own: for fine-tuning.

    A part for ``Trainer(optimizer=...)``: it is called with the trained parameters of `network`, which may be those of
    a copy that a plan has spread over processes, so they are told by their order.

    Args:
        optimizer: ``optimizer(parameter_groups)``, usually a ``functools.partial`` of a ``torch.optim`` class.
        network: with timm's or torchvision's names, see :func:`layer_depths`.
        decay: in (0, 1]; BEiT and MAE fine-tune a ViT-B with 0.65.

    Raises:
        ValueError: a decay out of range, a network without named blocks, or (when called) other parameters.
    """

    optimizer: Callable[..., torch.optim.Optimizer]
    network: nn.Module
    decay: float
    shapes: tuple[torch.Size, ...] = field(init=False, repr=False)
    scales: tuple[float, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not 0 < self.decay <= 1:
            raise ValueError(f"decay must lie in (0, 1], got {self.decay}")
        trained = [(name, p) for name, p in self.network.named_parameters() if p.requires_grad]
        depths = layer_depths([name for name, _ in trained])
        object.__setattr__(self, "shapes", tuple(parameter.shape for _, parameter in trained))
        object.__setattr__(self, "scales", tuple(self.decay ** (max(depths) - depth) for depth in depths))

    def __call__(self, parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
        given = list(parameters)
        if tuple(parameter.shape for parameter in given) != self.shapes:
            raise ValueError(
                f"expected the {len(self.shapes)} trained parameters of {type(self.network).__name__} in their order, "
                f"got {len(given)} parameters of other shapes"
            )
        by_scale: dict[float, list[Tensor]] = {}
        for parameter, scale in zip(given, self.scales):
            by_scale.setdefault(scale, []).append(parameter)
        # The largest scale first: the rate that a training logs is that of its first group.
        scales = sorted(by_scale, reverse=True)
        optimizer = self.optimizer([{"params": by_scale[scale]} for scale in scales])
        for group, scale in zip(optimizer.param_groups, scales):
            group["lr"] = group["lr"] * scale
        return optimizer
