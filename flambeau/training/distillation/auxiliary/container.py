"""Modules that run after a model, on tensors its hooks recorded."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from flambeau.training.distillation.path_loss import parse_path


class Auxiliary(nn.Module):
    """Modules that are no part of a model but are trained with it: regressors, adapters, heads.

    Args:
        modules: name -> module.
        inputs: name -> which recorded tensor the module takes, ``"path:output"`` or ``"path:input"`` ("path" means its
            output), where path may also be the name of a module given before it.

    Parameters are those of the modules, so an optimiser and a checkpoint hold them beside the model's.

    Raises:
        ValueError: names without an input or inputs without a module, or a malformed one. In the call: a
            tensor that was not recorded, or a name that is also a recorded path of the model.
    """

    def __init__(self, modules: Mapping[str, nn.Module], inputs: Mapping[str, str]):
        super().__init__()
        if modules.keys() != inputs.keys():
            raise ValueError(f"inputs: got {sorted(inputs)}, expected one for each of the modules {sorted(modules)}")
        self.parts = nn.ModuleDict(modules)
        self.inputs = {name: parse_path(source) for name, source in inputs.items()}

    def secondary_forward(self, io_dict: dict[str, dict[str, Any]]) -> None:
        """Run every module, in order, and record it: io_dict[name] becomes {"input": ..., "output": ...}."""
        for name, module in self.parts.items():
            taken = recorded(io_dict, *self.inputs[name])
            record(io_dict, name, taken, module(taken))


class EmptyModule(nn.Module):
    """Stands for a model that a stage of training does not need: gives back what it got."""

    def forward(self, *inputs: Any) -> Any:
        return inputs[0] if len(inputs) == 1 else inputs


def recorded(io_dict: Mapping[str, Mapping[str, Any]], path: str, end: str) -> Any:
    """io_dict[path][end], or ValueError that names what was recorded."""
    if end not in io_dict.get(path, ()):
        known = [f"{name}:{side}" for name, sides in io_dict.items() for side in sides]
        raise ValueError(f"io_dict: got {known}, expected a recorded {path}:{end}; hook it")
    return io_dict[path][end]


def record(io_dict: dict[str, dict[str, Any]], name: str, taken: Any, given: Any) -> None:
    """Write a module's input and output under its name."""
    if name in io_dict:
        raise ValueError(f"modules: got the name {name!r}, expected one that is no recorded path of the model")
    io_dict[name] = {"input": taken, "output": given}
