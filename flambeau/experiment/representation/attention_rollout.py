"""Which patches a vision transformer's output depends on through its attention."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from flambeau.models.vision.vit import ViT
from flambeau.nn.attention.core import AttentionCore

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@contextmanager
def recorded_attention(model: nn.Module) -> Iterator[list[Float[Tensor, "batch heads time time"]]]:
    """Within, every forward appends the weights of each attention to the list, in the order of the calls.

    What the model computes is not changed; the weights are computed beside it, from the same queries and keys.

    Raises:
        ValueError: the model has no plain ``AttentionCore``: its attention is another, or a plan has replaced it.
    """
    cores = [module for module in model.modules() if type(module) is AttentionCore]
    if not cores:
        raise ValueError(f"{type(model).__name__} has no AttentionCore whose weights could be recorded")
    weights: list[Tensor] = []

    def record(core: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        weights.append(_weights(core, *args, **kwargs))

    handles = [core.register_forward_pre_hook(record, with_kwargs=True) for core in cores]
    try:
        yield weights
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def attention_rollout(
    weights: Sequence[Float[Tensor, "batch heads time time"]], residual: float = 0.5
) -> Float[Tensor, "batch time time"]:
    """How much of each input token (last axis) reaches each output token, if attention were all that mixes tokens.

    Heads are averaged, the residual connection is counted as attention to oneself, ``residual I + (1 - residual) A``,
    and the layers are multiplied (Abnar and Zuidema 2020, arXiv 2005.00928, section 3). Rows sum to 1.

    Raises:
        ValueError: no weights, or `residual` outside [0, 1].
    """
    if not len(weights):
        raise ValueError("weights: those of at least one layer are needed")
    if not 0 <= residual <= 1:
        raise ValueError(f"residual must lie in [0, 1], got {residual}")
    batch, _, time, _ = weights[0].shape
    own = torch.eye(time, dtype=weights[0].dtype, device=weights[0].device)
    rolled = own.expand(batch, -1, -1)
    for layer in weights:
        rolled = (residual * own + (1 - residual) * layer.mean(1)) @ rolled
    return rolled


@torch.no_grad()
def rollout_maps(vit: ViT, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch rows columns"]:
    """Rollout from a ViT's class tokens (their mean; without any, that of all tokens) to its patches; maps sum to 1.

    The network is put into evaluation mode meanwhile.

    Raises:
        ValueError: images that do not fit the network, or one whose attention has been replaced.
    """
    training = vit.training
    vit.eval()
    try:
        with recorded_attention(vit) as weights:
            vit.tokens(images)
    finally:
        vit.train(training)
    rolled = attention_rollout(weights)
    seen = rolled[:, : vit.class_tokens or None, vit.class_tokens :].mean(1)
    seen = seen / seen.sum(1, keepdim=True)
    return seen.unflatten(1, (images.shape[2] // vit.patch[0], images.shape[3] // vit.patch[1]))


def draw_rollout(
    images: Float[Tensor, "n channels height width"],
    maps: Float[Tensor, "n rows columns"],
    titles: Sequence[str] | None = None,
) -> Figure:
    """Images (grey, or the first three channels) above the same images under their maps."""
    from matplotlib.figure import Figure

    shown = images[:, :3] if images.shape[1] >= 3 else images[:, :1]
    figure = Figure(figsize=(max(3.0, 1.4 * len(images)), 3.0))
    height, width = images.shape[2:]
    for position, (above, below) in enumerate(figure.subplots(2, len(images), squeeze=False).T):
        pixels = shown[position].permute(1, 2, 0).squeeze(-1).cpu().numpy()
        for axis in (above, below):
            axis.imshow(pixels, cmap="gray", vmin=0, vmax=1, extent=(0, width, height, 0))
            axis.set_axis_off()
        heat = maps[position].cpu().numpy()
        below.imshow(heat, cmap="inferno", alpha=0.65, extent=(0, width, height, 0), interpolation="bilinear")
        if titles is not None:
            above.set_title(titles[position], fontsize=8)
    figure.tight_layout()
    return figure


def _weights(
    core: nn.Module, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None
) -> Float[Tensor, "batch heads time time"]:
    """What ``AttentionCore`` weighs the values with, dropout aside."""
    scores = queries.detach() @ keys.detach().transpose(2, 3) / math.sqrt(queries.shape[3])
    if core.causal:
        time = scores.shape[2]
        scores = scores.masked_fill(~scores.new_ones(time, time, dtype=torch.bool).tril(), -torch.inf)
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None, None, :], -torch.inf)
    return scores.softmax(3)
