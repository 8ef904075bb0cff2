"""The pairs of a convolution and a batch normalisation that may be merged, and why the others may not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy

from flambeau.deployment.rewriting.module_pairs import module_pairs, trace_uses, watch_uses
from flambeau.nn.conv_bn import outputs

CONVOLUTIONS = (
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
)  # fmt: skip
NORMALISATIONS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
OWN_FORWARDS = {kind.forward for kind in CONVOLUTIONS + NORMALISATIONS}
OWN_FORWARDS |= {kind._conv_forward for kind in CONVOLUTIONS if kind is not nn.Linear}


@dataclass(frozen=True)
class ConvBN:
    """A convolution (or linear layer) whose output is read by a batch normalisation and by nothing else.

    Attributes:
        conv_name, bn_name: their names in the model.
        map_bytes: size of the feature map between them on the example inputs, None without any.
        weight_bytes: size of the scaled copy of the weights.
    """

    conv_name: str
    bn_name: str
    conv: nn.Module
    bn: _BatchNorm
    map_bytes: int | None
    weight_bytes: int


def find_conv_bn(
    model: nn.Module,
    example_inputs: Any = None,
    *,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] = (),
    min_gain: int | None = None,
) -> tuple[list[ConvBN], list[tuple[str, str]]]:
    """Find the pairs in a symbolic trace or, where a model cannot be traced, by watching a forward pass.

    Args:
        example_inputs: a tensor, a tuple of arguments or a dict of keyword arguments.
        include, exclude: patterns (``"layer4.*"``) that a name of the pair must, or must not, match.
        min_gain: leave out pairs that save fewer bytes on the example inputs: feature map less copy of the weights.

    Returns:
        The pairs, and (name, reason) for every other batch normalisation.

    Raises:
        ValueError: no pair; no example inputs where they are needed; as many features as outputs are not given.
    """
    if hasattr(model, "_orig_mod"):
        raise TypeError("model is compiled; find pairs in the model that was given to torch.compile, and compile after")
    if min_gain is not None and example_inputs is None:
        raise ValueError("min_gain needs example_inputs, to know the sizes of the feature maps")
    modules = dict(model.named_modules())
    kinds = CONVOLUTIONS + NORMALISATIONS
    watched = None if example_inputs is None else watch_uses(model, example_inputs, kinds)
    try:
        uses = trace_uses(model, kinds)
    except Exception as error:  # a model's own code, run with proxies, may raise anything
        if watched is None:
            raise ValueError(
                f"example_inputs: {type(model).__name__} cannot be traced symbolically ({error}); give a tensor, "
                "a tuple of arguments or a dict of keyword arguments for one forward pass"
            ) from error
        uses = watched
    named, skipped = module_pairs(model, uses, CONVOLUTIONS, NORMALISATIONS)
    pairs = []
    for conv_name, bn_name in named:
        conv, bn = modules[conv_name], modules[bn_name]
        reason = _unfit(conv, bn)
        if reason is None and not _chosen(conv_name, bn_name, include, exclude):
            reason = "left out by include or exclude"
        if reason is not None:
            skipped.append((bn_name, reason))
            continue
        if outputs(conv) != bn.num_features:
            raise ValueError(
                f"{conv_name} has {outputs(conv)} outputs, {bn_name} {bn.num_features} features; expected as many"
            )
        weight = conv.weight
        pair = ConvBN(
            conv_name, bn_name, conv, bn,
            map_bytes=None if watched is None else watched.bytes.get(conv_name, 0),
            weight_bytes=weight.numel() * weight.element_size(),
        )  # fmt: skip
        if min_gain is not None and (pair.map_bytes or 0) - pair.weight_bytes < min_gain:
            skipped.append((bn_name, f"saves {pair.map_bytes} bytes for a copy of {pair.weight_bytes}"))
        else:
            pairs.append(pair)
    if not pairs:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in skipped) or "it has no batch normalisation"
        raise ValueError(f"no pair of a convolution and a batch normalisation in {type(model).__name__}: {reasons}")
    return pairs, skipped


def has_hooks(conv: nn.Module, bn: nn.Module) -> bool:
    """Whether a hook would see the tensor between the two modules, or gradients of it.

    Pre-hooks of the convolution are not among them: they see its input, and ``weight_norm`` and pruning set the
    weight in one.
    """
    return bool(
        conv._forward_hooks or conv._backward_hooks or conv._backward_pre_hooks
        or bn._forward_pre_hooks or bn._forward_hooks or bn._backward_hooks or bn._backward_pre_hooks
    )  # fmt: skip


def _unfit(conv: nn.Module, bn: _BatchNorm) -> str | None:
    for module in (conv, bn):
        # A subclass (quantisation-aware, weight-standardised, with activation) may compute something else.
        inner = getattr(type(module), "_conv_forward", type(module).forward)
        if not {type(module).forward, inner} <= OWN_FORWARDS or "forward" in vars(module):
            return f"{type(module).__name__} has a forward of its own"
        if any(is_lazy(parameter) for parameter in module.parameters()):
            return f"{type(module).__name__} has no shape before its first call"
    if has_hooks(conv, bn):
        return "hooks are registered on the convolution or the normalisation"
    if not bn.track_running_stats or bn.running_mean is None:
        return "no running statistics (track_running_stats=False)"
    return None


def _chosen(conv_name: str, bn_name: str, include: Sequence[str] | None, exclude: Sequence[str]) -> bool:
    def matches(patterns: Sequence[str]) -> bool:
        return any(fnmatchcase(name, pattern) for name in (conv_name, bn_name) for pattern in patterns)

    return (include is None or matches(include)) and not matches(exclude)
