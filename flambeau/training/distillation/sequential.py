"""Networks cut down to the modules that a stage needs, and modules that a stage does not train."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from flambeau.training.distillation.hooks import find_module, unwrap


def build_sequential(
    model: nn.Module,
    paths: Sequence[str],
    adaptations: Mapping[str, nn.Module] | None = None,
    example: Any = None,
) -> nn.Sequential:
    """An ``nn.Sequential`` of modules of `model`, which it shares: up to "layer1", nothing behind it is computed.

    A function that the model's ``forward`` applies between two modules, such as a flatten, is not among them: give it
    as an adaptation, ``paths=[..., "avgpool", "+flatten", "fc"]`` with ``adaptations={"flatten": nn.Flatten()}``.

    Args:
        model: any module; wrappers are looked through.
        paths: in the order of execution; "features.0.conv" keeps its name. "+name" is an adaptation.
        adaptations: new modules by name.
        example: an input batch. With it the order is compared with that of a forward pass of `model`, and the
            result is run once (in evaluation mode, without gradients).

    Raises:
        ValueError: no such path, a path within another or given twice, the parts of a parent interrupted by other
            modules, or an order that cannot be executed: channels that do not fit, or, with `example`, another order
            than the model's own, or a failing module (named, with its input's shape).
    """
    adaptations = adaptations or {}
    if isinstance(paths, str) or not paths:
        raise ValueError(f"sequential: expected a list of module paths, got {paths!r}")
    named: dict[str, nn.Module] = {}
    for path in paths:
        if path.startswith("+"):
            name = path[1:]
            if name not in adaptations:
                raise ValueError(f"sequential: {path} is not among the adaptations {sorted(adaptations)}")
            module = adaptations[name]
        else:
            name, module = path, find_module(model, path)
        for other in named:
            if name == other or name.startswith(f"{other}.") or other.startswith(f"{name}."):
                raise ValueError(f"sequential: {name!r} and {other!r} would run the same module twice")
        named[name] = module
    _check_channels(named)
    sequential = _nested(named)
    if example is not None:
        _check_order(unwrap(model), [path for path in paths if not path.startswith("+")], example)
        _run(named, example)
    return sequential


def freeze(model: nn.Module, frozen_modules: Sequence[str]) -> None:
    """Stop the gradients of the parameters of some modules.

    The modules still follow the mode of the model: running statistics of a batch norm go on in training.

    Args:
        model: any module; wrappers are looked through.
        frozen_modules: module or parameter paths, "." for all, or ``"instance(BatchNorm2d)"`` for all of a class of
            ``torch.nn``.

    Raises:
        ValueError: no such path, no such class, or no module of the class.
    """
    for entry in frozen_modules:
        if entry.startswith("instance(") and entry.endswith(")"):
            name = entry.removeprefix("instance(").removesuffix(")")
            kind = getattr(nn, name, None)
            if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
                raise ValueError(f"frozen_modules: {entry} names no class of torch.nn")
            found: list[nn.Module] = [module for module in model.modules() if isinstance(module, kind)]
            if not found:
                raise ValueError(f"frozen_modules: {type(model).__name__} has no {name}")
        elif entry in (parameters := dict(unwrap(model).named_parameters())):
            parameters[entry].requires_grad_(False)
            continue
        else:
            found = [find_module(model, entry)]
        for module in found:
            module.requires_grad_(False)


def _nested(named: Mapping[str, nn.Module], prefix: str = "") -> nn.Sequential:
    """Sequentials within sequentials, so that "features.0" is found at "features.0" again."""
    groups: OrderedDict[str, OrderedDict[str, nn.Module]] = OrderedDict()
    previous = None
    for name, module in named.items():
        head, _, rest = name.partition(".")
        if head in groups and (head != previous or not rest):
            raise ValueError(
                f"sequential: the order cannot be executed, {prefix}{head} is left and entered again at {prefix}{name}"
            )
        groups.setdefault(head, OrderedDict())[rest] = module
        previous = head
    return nn.Sequential(
        OrderedDict(
            (head, group[""] if "" in group else _nested(group, f"{prefix}{head}.")) for head, group in groups.items()
        )
    )


def _check_channels(named: Mapping[str, nn.Module]) -> None:
    """Refuse neighbours of which one gives other channels than the next takes, as far as their layers tell."""
    given: tuple[str, int] | None = None
    for name, module in named.items():
        takes = getattr(module, "in_channels", getattr(module, "num_features", None))
        if isinstance(takes, int) and given is not None and given[1] != takes:
            raise ValueError(
                f"sequential: the order cannot be executed, {given[0]} gives {given[1]} channels, {name} takes {takes}"
            )
        if isinstance(module, nn.modules.conv._ConvNd):
            given = (name, module.out_channels)
        elif next(module.parameters(), None) is not None and not isinstance(module, nn.modules.batchnorm._BatchNorm):
            given = None  # a block may give anything


def _check_order(model: nn.Module, paths: Sequence[str], example: Any) -> None:
    """Run the model once and compare the order in which it calls the modules."""
    called: list[str] = []
    handles = [
        find_module(model, path).register_forward_pre_hook(lambda module, _, path=path: called.append(path))
        for path in paths
    ]
    try:
        with _evaluated(model), torch.no_grad():
            model(example)
    finally:
        for handle in handles:
            handle.remove()
    first_calls = list(dict.fromkeys(called))
    if first_calls != list(paths):
        missing = [path for path in paths if path not in called]
        told = f"it never calls {missing}" if missing else f"it calls them in the order {first_calls}"
        raise ValueError(f"sequential: {list(paths)} is not the order of {type(model).__name__}: {told}")


def _run(named: Mapping[str, nn.Module], example: Any) -> None:
    value = example
    with torch.no_grad():
        for name, module in named.items():
            shape = list(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
            try:
                with _evaluated(module):
                    value = module(value)
            except (RuntimeError, TypeError, ValueError) as error:
                raise ValueError(
                    f"sequential: the order cannot be executed, {name} fails on {shape}: {error}; a function between "
                    "modules, such as a flatten, has to be an adaptation"
                ) from error


class _evaluated:
    """Evaluation mode, and each module's own mode again afterwards."""

    def __init__(self, model: nn.Module):
        self.modes = [(module, module.training) for module in model.modules()]
        self.model = model

    def __enter__(self) -> None:
        self.model.eval()

    def __exit__(self, *_: object) -> None:
        for module, mode in self.modes:
            module.training = mode
