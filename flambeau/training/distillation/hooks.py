"""Intermediate tensors by module path: nothing of a model is edited, and nothing of the hooks is left on it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from flambeau.training.loop import to_device

IO = dict[str, dict[str, Any]]
SELF = "."  # the path of the model itself


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside what ``torch.compile``, ``DistributedDataParallel``, ``DataParallel`` and FSDP put around it."""
    while True:
        if hasattr(model, "_orig_mod"):
            model = model._orig_mod
        elif isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)) or hasattr(
            model, "_fsdp_wrapped_module"
        ):
            model = model.module
        else:
            return model


def find_module(model: nn.Module, path: str) -> nn.Module:
    """The submodule of `model` (looked for inside its wrappers) at a dotted path; "." is the model itself.

    Raises:
        ValueError: there is none; the message names the nearest paths.
    """
    model = unwrap(model)
    if path == SELF:
        return model
    modules = dict(model.named_modules(remove_duplicate=False))
    if path and path in modules:
        return modules[path]
    nearest = get_close_matches(path, [name for name in modules if name], n=3, cutoff=0.4)
    known = ", ".join(nearest) or ", ".join(name for name, _ in model.named_children()) or "none"
    raise ValueError(f"{type(model).__name__} has no module {path!r}; the nearest paths are {known}")


class ForwardHookManager:
    """Records inputs and outputs of modules while a model runs.

    Each forward pass overwrites what the one before recorded, and so does each further call of a module that is used
    more than once in a pass; with ``accumulates=True`` all calls are kept, as in generation. A copy of the model
    (``copy.deepcopy`` of something that holds both) records into the copy of the manager.

    Args:
        device: where ``pop_io_dict`` puts the tensors; None leaves them where they are.
    """

    def __init__(self, device: torch.device | str | None = None):
        self.device = None if device is None else torch.device(device)
        self._records: dict[str, _Record] = {}
        self._handles: list[RemovableHandle] = []

    def add_hook(
        self,
        model: nn.Module,
        path: str,
        requires_input: bool = True,
        requires_output: bool = True,
        accumulates: bool = False,
        stacks_accumulated: bool = False,
        *,
        name: str | None = None,
    ) -> None:
        """Record a module of `model`.

        For a model that is compiled, graphs that were compiled before are dropped (``torch.compiler.reset``), and
        from then on PyTorch checks hooks before it uses a graph: without that, hooks would be passed over in silence.

        Args:
            model: also wrapped in DDP or by ``torch.compile``.
            path: dotted, as in ``named_modules``; entries of lists by number ("layers.3"); "." for the model itself.
            requires_input: record the positional arguments, as they were before the call; the keyword arguments as a
                dict if there are no others. A tuple of one is unwrapped.
            requires_output: record what the module returns, a tuple of one unwrapped.
            accumulates: a list with one entry a call instead of the last call alone.
            stacks_accumulated: with `accumulates`, a tensor [calls, ...] in place of the list.
            name: the entry's key in place of `path`.

        Raises:
            ValueError: no such path, a name that is taken, nothing to record, or stacking without accumulation.
        """
        if not (requires_input or requires_output):
            raise ValueError(f"{path}: requires_input or requires_output must be True")
        if stacks_accumulated and not accumulates:
            raise ValueError(f"{path}: stacks_accumulated=True needs accumulates=True")
        name = path if name is None else name
        if name in self._records:
            raise ValueError(f"{name} is recorded already")
        module = find_module(model, path)
        if any(hasattr(m, "_orig_mod") or getattr(m, "_compiled_call_impl", None) for m in model.modules()):
            _check_hooks_of_compiled_models()
        record = self._records[name] = _Record(requires_output, accumulates, stacks_accumulated)
        if requires_input:
            self._handles.append(module.register_forward_pre_hook(record.before, with_kwargs=True))
        if requires_output:
            self._handles.append(module.register_forward_hook(record.after))

    def pop_io_dict(self) -> IO:
        """``{path: {"input": ..., "output": ...}}`` of what ran since the last call; a path that did not run is absent.

        An input that its module changed in place is left out where the output is recorded too.

        Raises:
            ValueError: a recorded tensor was changed in place afterwards, as ``ReLU(inplace=True)`` does to the output
                of the module before it; or calls of different shapes that were to be stacked.
        """
        io = {name: record.pop(name) for name, record in self._records.items()}
        ran = {name: entry for name, entry in io.items() if entry}
        return ran if self.device is None else to_device(ran, self.device)

    def names(self) -> list[str]:
        """The keys of what is recorded."""
        return list(self._records)

    def close(self) -> None:
        """Remove all hooks and forget what was recorded."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._records.clear()


@contextmanager
def hooks(model: nn.Module, paths: Sequence[str]) -> Iterator[LiveIO]:
    """Record modules while the context lasts: ``io["layer3"]["output"]`` is that of the last forward pass.

    >>> with hooks(model, ["encoder.layer.3"]) as io:
    ...     model(x)
    ...     hidden = io["encoder.layer.3"]["output"]

    What was recorded stays readable after the context; the hooks are gone.
    """
    manager = ForwardHookManager()
    io = LiveIO(manager)
    try:
        for path in paths:
            manager.add_hook(model, path)
        yield io
        io.refresh()
    finally:
        manager.close()


class LiveIO(Mapping[str, dict[str, Any]]):
    """What a manager has recorded up to the moment of reading."""

    def __init__(self, manager: ForwardHookManager):
        self._manager = manager
        self._io: IO = {}

    def refresh(self) -> IO:
        self._io.update(self._manager.pop_io_dict())
        return self._io

    def __getitem__(self, path: str) -> dict[str, Any]:
        return self.refresh()[path]

    def __iter__(self) -> Iterator[str]:
        return iter(self.refresh())

    def __len__(self) -> int:
        return len(self.refresh())


class _Record:
    """What one module was given and gave; no closure, so that a copied model records into a copy of it."""

    def __init__(self, outputs_too: bool, accumulates: bool, stacks: bool):
        self.outputs_too, self.accumulates, self.stacks = outputs_too, accumulates, stacks
        self.inputs: list[Any] = []
        self.outputs: list[Any] = []
        self.versions: list[tuple[str, Tensor, int]] = []

    def before(self, module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        self._keep("input", arguments if arguments or not keywords else dict(keywords))

    def after(self, module: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
        self._keep("output", output)

    def _keep(self, side: str, value: Any) -> None:
        calls = self.inputs if side == "input" else self.outputs
        if type(value) is tuple and len(value) == 1:
            value = value[0]
        if not self.accumulates:
            calls.clear()
        calls.append(value)
        # A compiled graph does not change its outputs in place, and inference tensors do not count changes.
        if isinstance(value, Tensor) and not torch.compiler.is_compiling() and not value.is_inference():
            self.versions.append((side, value, value._version))

    def pop(self, name: str) -> dict[str, Any]:
        """What was recorded, which is forgotten here."""
        changed = {(side, id(value)) for side, value, version in self.versions if value._version != version}
        self.versions.clear()
        entry = {}
        for side, calls in (("input", self.inputs), ("output", self.outputs)):
            whole = not any((side, id(call)) in changed for call in calls)
            if not whole and (side == "output" or not self.outputs_too):
                self.inputs.clear()
                self.outputs.clear()
                raise ValueError(
                    f"{name}: its {side} was changed in place afterwards, as ReLU(inplace=True) does; hook the module "
                    "that changes it, or build that one without inplace"
                )
            if calls and whole:
                entry[side] = self._joined(name, side, calls) if self.accumulates else calls[0]
            calls.clear()
        return entry

    def _joined(self, name: str, side: str, calls: list[Any]) -> Any:
        if not self.stacks:
            return list(calls)
        shapes = [list(call.shape) if isinstance(call, Tensor) else type(call).__name__ for call in calls]
        if any(shape != shapes[0] for shape in shapes) or not isinstance(calls[0], Tensor):
            raise ValueError(f"{name}: its {side}s cannot be stacked, they are {shapes[:4]}; use accumulates alone")
        return torch.stack(calls)


def _check_hooks_of_compiled_models() -> None:
    if torch._dynamo.config.skip_nnmodule_hook_guards:
        torch._dynamo.config.skip_nnmodule_hook_guards = False
        torch.compiler.reset()
