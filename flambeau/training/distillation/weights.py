"""Weights in files: safetensors, or PyTorch's format read without unpickling anything but tensors."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from flambeau.training import checkpoint
from flambeau.training.distillation.hooks import unwrap
from flambeau.training.state import plain_name, weights

SUFFIXES = (".safetensors", ".pt", ".pth")


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The tensors by name in a ``.safetensors``, ``.pt`` or ``.pth`` file, on the CPU.

    A dict under "model" or "state_dict" is looked into, as training scripts write them; "module." before all names,
    which DDP adds, is dropped.

    Raises:
        ValueError: another suffix, a damaged file, or one with other things than tensors; the message names it.
        FileNotFoundError: there is no such file.
    """
    path = checked_path(path)
    try:
        loaded = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise ValueError(f"{path}: not a file of weights that can be read safely ({error})") from None
    for name in ("model", "state_dict"):
        if isinstance(loaded, dict) and isinstance(loaded.get(name), dict):
            loaded = loaded[name]
    if not isinstance(loaded, dict) or not loaded or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise ValueError(f"{path}: expected tensors by name")
    prefix = "module." if all(name.startswith("module.") for name in loaded) else ""
    return {plain_name(name.removeprefix(prefix)): value for name, value in loaded.items()}


def load_weights(model: nn.Module, path: str | Path, what: str = "src_ckpt") -> None:
    """Copy the weights in a file into `model`, strictly.

    Raises:
        ValueError: names or shapes other than the model's; see also :func:`read_weights`.
    """
    saved = read_weights(path)
    live = unwrap(model).state_dict()
    missing, unexpected = sorted(live.keys() - saved.keys()), sorted(saved.keys() - live.keys())
    if missing or unexpected:
        raise ValueError(f"{what}: {path} lacks {missing[:5]} and adds {unexpected[:5]}")
    for name, value in live.items():
        if value.shape != saved[name].shape:
            shapes = f"{list(value.shape)} in the model and {list(saved[name].shape)} in {path}"
            raise ValueError(f"{what}: {name} is {shapes}")
    unwrap(model).load_state_dict(saved)


def write_weights(model: nn.Module, path: str | Path) -> None:
    """Write the model's weights, whole or not at all, in the format that the suffix names."""
    path = checked_path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Any] = weights(unwrap(model))
    if path.suffix == ".safetensors":
        checkpoint.save_weights(path, tensors)
        return
    temporary = path.with_name(f".writing-{path.name}-{os.getpid()}")
    try:
        torch.save({name: value.cpu() for name, value in tensors.items() if isinstance(value, Tensor)}, temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def checked_path(path: str | Path) -> Path:
    """`path` with the home directory filled in; ValueError if its suffix is none of weights."""
    path = Path(path).expanduser()
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path}: expected a name that ends in {', '.join(SUFFIXES)}")
    return path
