"""Sharded checkpoints: each process writes what it holds, and any other plan reads it.

PyTorch's distributed checkpoint (DCP) on safetensors files, which also other programs read; nothing is pickled. For
models that no process should gather; `Trainer` writes whole checkpoints of its own.
"""

from __future__ import annotations

import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.tensor import DTensor

from flambeau.training.checkpoint import CheckpointError

FLAT = StateDictOptions(flatten_optimizer_state_dict=True)


def save_sharded(folder: Path | str, model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> None:
    """Write the weights of `model`, and the moments and steps of `optimizer`, into a new folder, whole or not at all.

    Every process of the group calls it. Rates and other settings of the optimiser are not state and not written.

    Raises:
        FileExistsError: `folder` is there already.
        OSError: a process could not write; nothing is left behind.
    """
    folder = Path(folder)
    if folder.exists():
        raise FileExistsError(f"{folder} is there already; a checkpoint is never overwritten")
    writing = folder.with_name(f".writing-{folder.name}")
    if _first():
        shutil.rmtree(writing, ignore_errors=True)
        writing.mkdir(parents=True)
    _barrier()
    try:
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # without a group DCP says so
            writer = HuggingFaceStorageWriter(str(writing), save_distributed=True)
            dcp.save(_tensors(model, optimizer), storage_writer=writer, no_dist=not dist.is_initialized())
    except dcp.CheckpointException as error:
        if _first():
            shutil.rmtree(writing, ignore_errors=True)
        raise OSError(f"{folder} was not written: {error}") from None
    _barrier()
    if _first():
        os.rename(writing, folder)
    _barrier()


def load_sharded(folder: Path | str, model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> None:
    """Read what `save_sharded` wrote, under any plan and any number of processes, in place.

    Raises:
        CheckpointError: not a checkpoint of such a model, or a file is missing, truncated or damaged.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is no checkpoint folder")
    tensors = _tensors(model, optimizer)
    reader = HuggingFaceStorageReader(str(folder))
    try:
        for path in folder.glob("*.safetensors"):
            with safe_open(path, "pt"):
                pass  # opening compares the header with the size: nothing is loaded from a truncated set of files
        saved = reader.read_metadata().state_dict_metadata
    except (SafetensorError, OSError, ValueError, KeyError, AssertionError) as error:
        raise CheckpointError(f"{folder} cannot be read: {error}") from None
    missing = sorted(tensors.keys() - saved.keys())
    if missing:
        raise CheckpointError(f"{folder} is damaged or of another model: it lacks {missing[:5]}")
    for name, tensor in tensors.items():
        if tuple(saved[name].size) != tuple(tensor.shape):
            raise CheckpointError(
                f"{name} has shape {list(tensor.shape)} in the model and {list(saved[name].size)} in {folder}"
            )
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # without a group DCP says so
        dcp.load(tensors, storage_reader=reader, no_dist=not dist.is_initialized())
    # The weights were read in place; an optimiser's state is set, as it may not have begun to exist.
    if optimizer is not None:
        state = get_optimizer_state_dict(model, optimizer, options=FLAT)
        state |= {name.removeprefix("optimizer."): t for name, t in tensors.items() if name.startswith("optimizer.")}
        set_optimizer_state_dict(model, optimizer, state, options=FLAT)


def _tensors(model: nn.Module, optimizer: torch.optim.Optimizer | None) -> dict[str, Any]:
    """What is saved, by name. Of tied weights only the first name, as safetensors shares no memory."""
    weights: dict[int, tuple[str, Tensor]] = {}
    for name, value in get_model_state_dict(model).items():
        local = value.to_local() if isinstance(value, DTensor) else value
        weights.setdefault(local.data_ptr() if local.numel() else id(value), (f"model.{name}", value))
    tensors = dict(weights.values())
    if optimizer is not None:
        state = get_optimizer_state_dict(model, optimizer, options=FLAT)
        tensors |= {f"optimizer.{name}": value for name, value in state.items() if isinstance(value, Tensor)}
    return tensors


def _first() -> bool:
    return not dist.is_initialized() or dist.get_rank() == 0


def _barrier() -> None:
    if dist.is_initialized():
        dist.barrier()
