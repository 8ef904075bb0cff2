"""Checkpoints of self-supervised pre-training, by the names that the plain network has for its weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

LARGEST_FILE = 8 << 30
PREFIXES = (
    "sparse_encoder.sp_cnn.",  # SparK with its decoder (github.com/keyu-tian/SparK, pretrain/main.py)
    "encoder_q.",  # MoCo; this, BYOL and SwAV as in the README of github.com/Wolfda95/SSL-MedicalImagining-CL-MAE
    "online_network.encoder.",  # BYOL
    "encoder.0.backbone.",  # the contrastive methods of flambeau.training.self_supervised
    "student.backbone.",
    "backbone.",
    "model.",  # SwAV
    "",  # SparK's encoder alone
)
OUTER = ("state_dict", "module", "model", "state")
HEADS = ("fc.", "head.", "classifier.", "projection_head.", "prototypes.")


def backbone_state(weights: str | Path | Mapping[str, object]) -> dict[str, Tensor]:
    """The encoder's tensors in a self-supervised checkpoint, by plain names (``conv1.weight``, ``layer1.0...``).

    Reads what MoCo, BYOL and SwAV of lightning-bolts, SparK (with or without its decoder) and flambeau's own methods
    save: nested under "state_dict" or "module", each name behind the method's prefix, and "module." of data-parallel
    training. The head (``fc.``, with MoCo its projection), projectors and the momentum encoder are left out.

    weights: a safetensors file, a pickled one (loaded with ``weights_only=True``), or its content.

    Raises:
        ValueError: a file that is too large or cannot be read without executing it, or that holds no encoder.
    """
    found = _read(Path(weights)) if isinstance(weights, str | Path) else dict(weights)
    while not any(isinstance(value, Tensor) for value in found.values()):
        inner = [value for key in OUTER if isinstance(value := found.get(key), Mapping)]
        if not inner:
            raise ValueError(f"weights hold no tensors; they have {_some(found)}")
        found = dict(inner[0])
    tensors = {name: value for name, value in found.items() if isinstance(value, Tensor)}
    if all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): value for name, value in tensors.items()}
    for prefix in PREFIXES:
        state = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
        state = {name: value for name, value in state.items() if not name.startswith(HEADS)}
        if any(value.ndim >= 4 for value in state.values()):
            return state
    raise ValueError(f"weights hold no encoder with a convolution; they have {_some(tensors)}")


def load_backbone(network: nn.Module, weights: str | Path | Mapping[str, object]) -> list[str]:
    """Load a self-supervised encoder into a plain network, in place; its head keeps its own values.

    Raises:
        ValueError: as `backbone_state`; or the encoder has another shape, or leaves more unfilled than whole children
            of the network that have no convolution.

    Returns:
        The names that were not loaded: the head's.
    """
    state, own = backbone_state(weights), network.state_dict()
    wrong = [name for name in own if name in state and own[name].shape != state[name].shape]
    if wrong:
        name = wrong[0]
        raise ValueError(
            f"{name} has shape {list(own[name].shape)} in the network, {list(state[name].shape)} in weights"
        )
    missing = [name for name in own if name not in state]
    loaded = {name.split(".")[0] for name in own if name in state}
    with_convolution = {name.split(".")[0] for name, module in network.named_modules() if isinstance(module, _ConvNd)}
    body = [name for name in missing if name.split(".")[0] in loaded | with_convolution]
    if body:
        raise ValueError(f"weights have no {body[0]!r} ({len(body)} are missing); they have {_some(state)}")
    network.load_state_dict({name: state[name] for name in own if name in state}, strict=False)
    return missing


def _read(path: Path) -> dict[str, object]:
    if path.stat().st_size > LARGEST_FILE:
        raise ValueError(f"{path}: {path.stat().st_size} bytes, more than the {LARGEST_FILE} that are read")
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, UnpicklingError, RuntimeError, EOFError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path}: not a file of plain tensors ({reason}); save its state dict alone") from None
    if not isinstance(content, Mapping):
        raise ValueError(f"{path}: holds a {type(content).__name__}, not a state dict")
    return dict(content)


def _some(names: Mapping[str, object]) -> str:
    return ", ".join(sorted(names)[:4]) or "nothing"
