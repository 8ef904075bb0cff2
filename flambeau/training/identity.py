"""What a training is, as plain data: so that a folder is continued only by the training it was begun with."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from flambeau.data import Batches

_DEPTH = 4
_ITEMS = 100


def describe(value: Any, depth: int = _DEPTH) -> Any:
    """`value` as JSON: functions by name, ``functools.partial`` and objects with what they hold, tensors by shape."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (torch.dtype, torch.device)):
        return str(value)
    if isinstance(value, Tensor):
        return f"{value.dtype} {list(value.shape)}"
    if isinstance(value, nn.Module):
        return type(value).__qualname__
    if isinstance(value, Batches):
        names = ("samples", "batch_size", "shuffle", "drop_last", "transform")
        return {"type": "Batches", **{name: describe(getattr(value, name), depth - 1) for name in names}}
    if isinstance(value, functools.partial):
        arguments: dict[Any, Any] = {**dict(enumerate(value.args)), **value.keywords}
        return {"type": _name(value.func), **_described(arguments, depth)}
    if isinstance(value, Mapping):
        return _described(value, depth)
    if isinstance(value, (list, tuple)):
        whole = depth and len(value) <= _ITEMS
        return [describe(item, depth - 1) for item in value] if whole else f"{type(value).__name__} of {len(value)}"
    if isinstance(value, type) or hasattr(value, "__qualname__"):
        return _name(value)
    return {"type": _name(type(value)), **_described(getattr(value, "__dict__", {}), depth)}


def differences(before: Any, now: Any, path: str = "") -> list[str]:
    """Where two descriptions differ, as ``path: before, now`` in words."""
    if isinstance(before, dict) and isinstance(now, dict):
        found = []
        for key in sorted(before.keys() | now.keys()):
            found += differences(before.get(key), now.get(key), f"{path}.{key}" if path else key)
        return found
    return [] if before == now else [f"{path} was {before!r} and is {now!r}"]


def _described(values: Mapping[Any, Any], depth: int) -> dict[str, Any]:
    whole = depth and len(values) <= _ITEMS
    return {str(key): describe(item, depth - 1) for key, item in values.items()} if whole else {"entries": len(values)}


def _name(value: Any) -> str:
    return f"{getattr(value, '__module__', '?')}.{getattr(value, '__qualname__', type(value).__qualname__)}"
