"""What a rank holds of a model: why a t-way split takes more than a t-th of the memory."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.distributed.tensor import DTensor

_ORDER = ("split", "norms", "biases", "embeddings", "other", "all")


def memory_per_rank(model: nn.Module, optimizer_states: int = 2) -> list[dict[str, Any]]:
    """Bytes that this rank holds of the parameters, their gradients and the optimiser's states.

    One row a class: "split" parameters, and those that every rank holds whole: "norms", "biases" (added behind a sum
    over ranks), "embeddings" (positions, segments) and "other"; the last row is "all".

    Args:
        optimizer_states: tensors that the optimiser keeps for a parameter, of the parameter's type: 2 for Adam.

    Returns:
        Rows with ``parameters`` (elements on this rank), ``parameter_bytes``, ``gradient_bytes``, ``optimizer_bytes``
        and ``share``, the part that this rank holds of the class.
    """
    held: dict[str, list[int]] = {name: [0, 0, 0] for name in _ORDER}
    seen: set[int] = set()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) in seen:
                continue
            seen.add(id(parameter))
            local = parameter.to_local() if isinstance(parameter, DTensor) else parameter
            kind = "split" if local.numel() < parameter.numel() else _kind(module, name)
            for row in (held[kind], held["all"]):
                row[0] += local.numel()
                row[1] += local.numel() * local.element_size()
                row[2] += parameter.numel()
    return [
        {
            "class": name,
            "parameters": elements,
            "parameter_bytes": size,
            "gradient_bytes": size,
            "optimizer_bytes": optimizer_states * size,
            "share": elements / whole,
        }
        for name, (elements, size, whole) in held.items()
        if whole
    ]


def _kind(module: nn.Module, name: str) -> str:
    if isinstance(module, nn.Embedding):
        return "embeddings"
    if "norm" in type(module).__name__.lower():
        return "norms"
    return "biases" if name == "bias" else "other"
