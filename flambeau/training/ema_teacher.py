"""A teacher that follows its student as a moving average."""

from __future__ import annotations

import copy
import math

import torch
from torch import nn


class EMATeacher(nn.Module):
    """``teacher <- m teacher + (1 - m) student``, parameters and floating-point buffers alike, without gradients.

    The teacher of MoCo, BYOL and DINO (He et al. 2020, arXiv 1911.05722; Grill et al. 2020, arXiv 2006.07733). Running
    statistics of BatchNorm follow too: a teacher that averages its weights but keeps statistics of its own normalises
    with the wrong ones. It is part of the model that is trained, so that checkpoints hold it; call `update` after each
    step (at the beginning of the next forward).

    student: copied; the two share nothing. momentum: m at the first update. final: m at the last of `total` updates,
    reached along a cosine; without `total` m stays. Raises ValueError for m outside [0, 1].
    """

    updates: torch.Tensor

    def __init__(self, student: nn.Module, momentum: float = 0.996, final: float = 1.0, total: int | None = None):
        super().__init__()
        for name, value in (("momentum", momentum), ("final", final)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {value}")
        if total is not None and total < 1:
            raise ValueError(f"total must be at least 1, got {total}")
        self.module = copy.deepcopy(student).requires_grad_(False)
        self.momentum, self.final, self.total = momentum, final, total
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))

    def forward(self, *arguments, **keywords):
        """What the averaged module gives, without gradients."""
        with torch.no_grad():
            return self.module(*arguments, **keywords)

    @torch.no_grad()
    def update(self, student: nn.Module) -> None:
        """Move towards `student`. Integer buffers (counts) are copied.

        Raises:
            ValueError: a student of other parameters or buffers.
        """
        m = self.momentum
        if self.total is not None:
            done = min(1.0, self.updates.item() / self.total)
            m = self.final - (self.final - self.momentum) * (math.cos(math.pi * done) + 1) / 2
        ours, theirs = dict(_tensors(self.module)), dict(_tensors(student))
        if ours.keys() != theirs.keys():
            raise ValueError(f"the student differs in {sorted(ours.keys() ^ theirs.keys())[:5]}")
        floating = [name for name, value in ours.items() if value.is_floating_point()]
        torch._foreach_lerp_([ours[name] for name in floating], [theirs[name] for name in floating], 1 - m)
        for name in ours.keys() - set(floating):
            ours[name].copy_(theirs[name])
        self.updates += 1


def _tensors(module: nn.Module):
    yield from ((f"parameter {name}", value.detach()) for name, value in module.named_parameters())
    yield from ((f"buffer {name}", value) for name, value in module.named_buffers())
