"""What a layer attends to: dense weights, divergence between heads, and how full its clusters are."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from flambeau.nn.attention.routing import RoutingAttention


@torch.no_grad()
def attention_weights(
    layer: nn.Module, x: Float[Tensor, "batch time dim"], mask: Bool[Tensor, "batch time"] | None = None
) -> Float[Tensor, "batch heads time time"]:
    """How much of every token's value a layer of `flambeau.nn.attention` hands to every other, O(T^2) memory.

    The layer attends to one-hot values, whose mixture is the weights. It is put into evaluation mode meanwhile.
    """
    training = layer.training
    layer.eval()
    try:
        queries, keys, _ = layer.project(x)
        time = x.shape[1]
        values = torch.eye(time, dtype=x.dtype, device=x.device).expand(*queries.shape[:2], time, time)
        return layer.attend(queries, keys, values, mask)[0]
    finally:
        layer.train(training)


def jensen_shannon(
    first: Float[Tensor, "batch heads time time"], second: Float[Tensor, "batch heads2 time time"]
) -> Float[Tensor, "heads heads2"]:
    """Mean Jensen-Shannon divergence in nats, 0 to ln 2, between the attention of every two heads.

    Source: Roy et al. 2020 (arXiv 2003.05997), table 6. Tokens that either head leaves out are not counted.
    """
    a, b = first[:, :, None], second[:, None]
    middle = (a + b) / 2
    divergence = (torch.special.entr(middle) - (torch.special.entr(a) + torch.special.entr(b)) / 2).sum(-1)
    counted = ((a.sum(-1) > 0.5) & (b.sum(-1) > 0.5)).to(divergence.dtype)
    mean = (divergence * counted).sum((0, 3)) / counted.sum((0, 3)).clamp(min=1)
    return mean.clamp(0, math.log(2))


@torch.no_grad()
def occupancy(
    layer: RoutingAttention, x: Float[Tensor, "batch time dim"], mask: Bool[Tensor, "batch time"] | None = None
) -> Float[Tensor, "heads clusters"]:
    """Share of the tokens of x whose best centroid is each cluster. A share above one half means trouble: with causal
    selection a cluster's tokens see only its last `window` members."""
    training = layer.training
    layer.eval()
    try:
        index = layer.kmeans(layer.project(x)[0], mask).index  # [batch, heads, time]
    finally:
        layer.train(training)
    member = torch.nn.functional.one_hot(index, layer.num_clusters).float()
    if mask is not None:
        member = member * mask[:, None, :, None]
    counts = member.sum((0, 2))
    return counts / counts.sum(-1, keepdim=True)
