"""Which module's output goes to which module: found in an fx trace, or by watching one forward pass.

A rewriting that merges two modules (convolution and normalisation, a layer and its quantiser) asks for pairs in which
the first one's output has exactly one use, the second.
"""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils._python_dispatch import TorchDispatchMode

Kinds = tuple[type[nn.Module], ...]


@dataclass
class ModuleUses:
    """What happens to the outputs of a model's leaf modules in one forward pass.

    Attributes:
        calls: how often each module is called.
        sources: where the input of each module comes from, one entry a call: a module's name, or ``"add"``, ...
        users: everything that reads the output of each module, one entry a use: names of modules and operations.
        bytes: size of the last output of each module; empty for an fx trace, which has no sizes.
    """

    calls: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    sources: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    users: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    bytes: dict[str, int] = field(default_factory=dict)


def module_pairs(
    model: nn.Module, uses: ModuleUses, first: Kinds, second: Kinds
) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Pairs of names (a, b): a is a `first`, b a `second`, each called once, and b is all that reads the output of a.

    Returns:
        The pairs in the order of the model, and for every other `second` (name, reason).
    """
    modules = dict(model.named_modules())
    pairs, others = [], []
    for name, module in modules.items():
        if not isinstance(module, second):
            continue
        calls = uses.calls.get(name, 0)
        source = uses.sources[name][0] if calls else ""
        if calls == 0:
            reason = "not called in the traced forward pass"
        elif calls > 1:
            reason = f"shared: called {calls} times"
        elif not isinstance(modules.get(source), first):
            reason = f"its input comes from {source}, {_kind(modules.get(source))}"
        elif uses.calls[source] > 1:
            reason = f"{source} is shared: called {uses.calls[source]} times"
        elif len(uses.users[source]) > 1:
            rest = list(uses.users[source])
            rest.remove(name)
            reason = f"the output of {source} is also used by {', '.join(sorted(set(rest)))}"
        else:
            pairs.append((source, name))
            continue
        others.append((name, reason))
    return pairs, others


def trace_uses(model: nn.Module, leaves: Kinds) -> ModuleUses:
    """The uses in symbolic traces (``torch.fx``) of training and evaluation mode together, true for every input.

    A mode that cannot be traced is left out if the other can.

    Args:
        leaves: kinds of modules not to look into, besides those of ``torch.nn``.

    Raises:
        Exception: whatever the model raises when it is called with proxies, for example at control flow on values.
    """
    flags = {module: module.training for module in model.modules()}
    found, errors = [], []
    try:
        for training in (True, False):
            for module in flags:  # not by model.train(), which some models override to merge or split weights
                module.training = training
            try:
                found.append(_traced(model, leaves))
            except Exception as error:  # a model's own code, run with proxies, may raise anything
                errors.append(error)
    finally:
        for module, flag in flags.items():
            module.training = flag
    if not found:
        raise errors[-1]
    return found[0] if len(found) == 1 else _united(*found)


def _traced(model: nn.Module, leaves: Kinds) -> ModuleUses:
    class Tracer(fx.Tracer):
        def is_leaf_module(self, module: nn.Module, name: str) -> bool:
            return isinstance(module, leaves) or super().is_leaf_module(module, name)

    uses = ModuleUses()
    for node in Tracer().trace(model).nodes:
        if node.op == "call_module":
            uses.calls[node.target] += 1
            inputs = node.all_input_nodes
            uses.sources[node.target].append(_node_name(inputs[0]) if inputs else "nothing")
            uses.users[node.target] += [_node_name(user) for user in node.users]
    return uses


def _united(a: ModuleUses, b: ModuleUses) -> ModuleUses:
    """What either of two traces does: a use that only one of them makes is a use."""
    uses = ModuleUses()
    for name in {**a.calls, **b.calls}:
        uses.calls[name] = max(a.calls.get(name, 0), b.calls.get(name, 0))
        uses.sources[name] = a.sources.get(name) or b.sources[name]
        if name in a.sources and name in b.sources and a.sources[name] != b.sources[name]:
            uses.sources[name] = ["one thing in training mode and another in evaluation mode"]
        uses.users[name] = sorted((Counter(a.users.get(name, ())) | Counter(b.users.get(name, ()))).elements())
    return uses


def watch_uses(model: nn.Module, example_inputs: Any, leaves: Kinds) -> ModuleUses:
    """The uses in one forward pass on `example_inputs`, watched operation by operation.

    A tensor is known by its storage; every output of a leaf module is kept until the end, so that no storage is
    mistaken for an earlier one. Running statistics and the random state are left as they were.

    Args:
        example_inputs: a tensor, a tuple of arguments or a dict of keyword arguments.
        leaves: kinds of modules not to look into, besides modules without children.
    """
    uses = ModuleUses()
    watch = _Watch(uses)
    args, kwargs = _arguments(example_inputs)
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=_cuda_devices(model)))
        stack.enter_context(torch.no_grad())
        stack.enter_context(_norms_in_eval(model))
        for name, module in model.named_modules():
            if isinstance(module, leaves) or not any(True for _ in module.children()):
                stack.callback(module.register_forward_pre_hook(watch.enter(name), with_kwargs=True).remove)
                stack.callback(module.register_forward_hook(watch.leave(name)).remove)
        with watch:
            result = model(*args, **kwargs)
    for tensor in _tensors(result):
        watch.read(tensor, "the model's output")
    return uses


class _Watch(TorchDispatchMode):
    """Notes which module or operation reads the output of which module."""

    def __init__(self, uses: ModuleUses):
        super().__init__()
        self.uses = uses
        self.inside: list[tuple[str, int]] = []
        self.made_by: dict[int, str] = {}  # storage -> the module that returned it last
        self.read_by: dict[int, set[tuple[str, int]]] = {}  # storage -> its readers since then
        self.held: list[Tensor] = []

    def enter(self, name: str):
        def before(module: nn.Module, args: Any, kwargs: Any) -> None:
            call = self.uses.calls[name]
            self.uses.calls[name] += 1
            first = next(_tensors((args, kwargs)), None)
            known = None if first is None else self.made_by.get(_storage(first))
            self.uses.sources[name].append(known or "an operation")
            for tensor in _tensors((args, kwargs)):
                self.read(tensor, name, call)
            self.inside.append((name, call))

        return before

    def leave(self, name: str):
        def after(module: nn.Module, args: Any, output: Any) -> None:
            self.inside.pop()
            for tensor in _tensors(output):
                self.held.append(tensor)
                self.made_by[_storage(tensor)] = name
                self.read_by[_storage(tensor)] = set()
                self.uses.bytes[name] = tensor.numel() * tensor.element_size()

        return after

    def read(self, tensor: Tensor, by: str, call: int = 0) -> None:
        storage = _storage(tensor)
        if storage in self.made_by and (by, call) not in self.read_by[storage]:
            self.read_by[storage].add((by, call))
            self.uses.users[self.made_by[storage]].append(by)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, call = self.inside[-1] if self.inside else (func.overloadpacket.__name__, len(self.held))
        for tensor in _tensors((args, kwargs)):
            self.read(tensor, name, call)
        return func(*args, **(kwargs or {}))


@contextmanager
def _norms_in_eval(model: nn.Module) -> Iterator[None]:
    training = [module for module in model.modules() if isinstance(module, _NormBase) and module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        if value.layout == torch.strided:  # others have no storage
            yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for entry in dataclasses.fields(value):
            yield from _tensors(getattr(value, entry.name))


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _arguments(example_inputs: Any) -> tuple[tuple, dict]:
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    return (tuple(example_inputs), {}) if isinstance(example_inputs, (tuple, list)) else ((example_inputs,), {})


def _cuda_devices(model: nn.Module) -> list[torch.device]:
    return list({parameter.device for parameter in model.parameters() if parameter.device.type == "cuda"})


def _node_name(node: fx.Node) -> str:
    if node.op == "call_module":
        return str(node.target)
    names = {"placeholder": "the model's input", "output": "the model's output"}
    return names.get(node.op) or str(getattr(node.target, "__name__", node.target))


def _kind(module: nn.Module | None) -> str:
    return "which is not a module" if module is None else f"a {type(module).__name__}"
