"""Checks and the output axis that all forecasters share."""

from __future__ import annotations

import torch
from torch import Tensor


def check_window(
    x: Tensor, x_mark: Tensor | None, y_mark: Tensor | None, *, c_in: int, seq_len: int, y_len: int, marks: int
) -> None:
    """Refuse a window whose shapes are not those that the model was built for.

    Raises:
        ValueError: names the argument, the shape expected and the shape got.
    """
    for name, tensor, expected in (
        ("x", x, (seq_len, c_in)),
        ("x_mark", x_mark, (seq_len, marks)),
        ("y_mark", y_mark, (y_len, marks)),
    ):
        if tensor is not None and tuple(tensor.shape[1:]) != expected:
            raise ValueError(f"{name} must be [batch, {expected[0]}, {expected[1]}], got {list(tensor.shape)}")


def add_level(out: Tensor, level: Tensor, outputs: int) -> Tensor:
    """Add the `level` ``[batch, time, c_out]`` to a model's output ``[batch, time, c_out * outputs]``.

    With several outputs for a target (the parameters of a distribution) the level belongs to the first, the location.
    Returns ``[batch, time, c_out]`` for one output and ``[batch, time, c_out, outputs]`` for several.
    """
    if outputs == 1:
        return out + level
    location, *others = out.unflatten(-1, (level.shape[-1], outputs)).unbind(-1)
    return torch.stack([location + level, *others], dim=-1)
