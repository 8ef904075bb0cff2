"""The same function with other weights: a normalisation undoes any scale of the convolution before it."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from flambeau.deployment.rewriting.conv_bn_pairs import find_conv_bn
from flambeau.deployment.rewriting.tune_mode import untuned
from flambeau.nn.conv_bn import scale_outputs, transposed_groups


@torch.no_grad()
def rescale_channels(
    model: nn.Module,
    low: float = 1.0,
    high: float = 30.0,
    *,
    generator: torch.Generator | None = None,
    example_inputs: Any = None,
) -> None:
    """Multiply every output channel of a convolution before a normalisation by s, log-uniform in [low, high], in place.

    w -> s w, b -> s b, mu -> s mu, var -> s^2 (var + eps) - eps: the output in evaluation mode stays the same, while
    c = gamma / sqrt(var + eps) becomes c / s. How well a training copes with that is a matter of its parametrisation.

    Args:
        low, high: range of the factors, at least 1 (below, var could become negative).

    Raises:
        ValueError: bad range; no pair, as for :func:`tune_mode`.
    """
    if not 1 <= low <= high:
        raise ValueError(f"low and high must satisfy 1 <= low <= high, got {low} and {high}")
    with untuned(model):
        pairs, _ = find_conv_bn(model, example_inputs)
    for pair in pairs:
        conv, bn = pair.conv, pair.bn
        position = torch.rand(bn.num_features, generator=generator, dtype=torch.float64)
        factor = (math.log(low) + position * math.log(high / low)).exp().to(bn.running_var)
        conv.weight.copy_(scale_outputs(conv.weight, factor.to(conv.weight), transposed_groups(conv)))
        if conv.bias is not None:
            conv.bias.mul_(factor)
        bn.running_mean.mul_(factor)
        bn.running_var.copy_(factor**2 * (bn.running_var + bn.eps) - bn.eps)
