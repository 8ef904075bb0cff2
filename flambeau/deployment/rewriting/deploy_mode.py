"""Deploy mode: a convolution takes its normalisation in for good."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flambeau.deployment.rewriting.conv_bn_pairs import find_conv_bn
from flambeau.deployment.rewriting.tune_mode import TuneReport, eval_mode, untuned
from flambeau.nn.conv_bn import coefficients, fused_parameters

UNSTABLE = 100.0


class FusedBatchNorm(nn.Identity):
    """Stands where a batch normalisation was that a convolution has taken in.

    Attributes:
        conv_name: the convolution's name in the model.
        scale_range: smallest and largest |c| of its channels.
    """

    def __init__(self, conv_name: str, scale_range: tuple[float, float]):
        super().__init__()
        self.conv_name, self.scale_range = conv_name, scale_range


def deploy_mode(
    model: nn.Module, example_inputs: Any = None, include: Sequence[str] | None = None, exclude: Sequence[str] = ()
) -> TuneReport:
    """Fuse every pair into its convolution, in place: weight c w, bias beta + c (b - mu); the normalisation is gone.

    For inference. Training the fused weights is another optimisation problem: with SGD the step of a filter is 1 / c^2
    times that of tune or evaluation mode, and c differs widely between channels (You et al. 2023, section 3).

    Args:
        example_inputs, include, exclude: as for :func:`tune_mode`.

    Raises:
        ValueError: no pair is in evaluation mode (with the reasons), or example inputs are missing.

    Warns:
        UserWarning: |c| differs by more than a factor of 100 within a pair: training may become unstable.
    """
    with untuned(model):
        pairs, skipped = find_conv_bn(model, example_inputs, include=include, exclude=exclude)
    eval_mode(model)
    uses = [id(p) for module in model.modules() for p in module.parameters(recurse=False)]
    fused, unstable = [], []
    for pair in pairs:
        reason = None
        if pair.bn.training:
            reason = "in training mode; call model.eval() first"
        elif "weight" not in pair.conv._parameters:
            reason = f"the weight of {pair.conv_name} is computed by a parametrization"
        elif uses.count(id(pair.conv.weight)) > 1:
            reason = f"the weight of {pair.conv_name} is shared with another module"
        if reason is not None:
            skipped.append((pair.bn_name, reason))
            continue
        low, high = scale_range(pair.bn)
        _take_in(pair.conv, pair.bn)
        parent, _, name = pair.bn_name.rpartition(".")
        setattr(model.get_submodule(parent), name, FusedBatchNorm(pair.conv_name, (low, high)))
        fused.append((pair.conv_name, pair.bn_name))
        if high > UNSTABLE * low:
            unstable.append(pair.bn_name)
    if not fused:
        raise ValueError("no pair can be fused: " + "; ".join(f"{name}: {reason}" for name, reason in skipped))
    if unstable:
        warnings.warn(
            f"the factors of the channels differ by more than {UNSTABLE:g} in {', '.join(unstable[:3])}"
            f"{', ...' if len(unstable) > 3 else ''}: training the fused weights may be unstable; tune_mode is not",
            stacklevel=2,
        )
    return TuneReport(fused, skipped)


def scale_range(bn: Any) -> tuple[float, float]:
    """Smallest and largest |c| of the channels of a normalisation."""
    low, high = coefficients(bn).abs().aminmax()
    return low.item(), high.item()


@torch.no_grad()
def _take_in(conv: Any, bn: Any) -> None:
    weight, bias = fused_parameters(conv, bn, precision="fp32")
    trained = conv.weight.requires_grad
    conv.weight = nn.Parameter(_like(weight, conv.weight), requires_grad=trained)
    conv.bias = nn.Parameter(bias, requires_grad=trained)


def _like(value: Tensor, other: Tensor) -> Tensor:
    return torch.empty_like(other).copy_(value)  # keeps channels_last
