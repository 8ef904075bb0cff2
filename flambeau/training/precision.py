"""The arithmetic of training: what a forward pass runs in, whether the loss is scaled, which hooks are attached."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn


class Precision:
    """The parameters' own precision (fp32 for an ordinary model); the base of other precisions.

    A precision overrides what it needs of three moments:

    - :meth:`autocast` around every forward pass and its loss,
    - :meth:`scaler` for gradients that would underflow,
    - :meth:`attach` once around the whole training: emulated arithmetic registers its hooks here (forward hooks to
      round activations, ``register_post_accumulate_grad_hook`` to round gradients, ``register_step_post_hook`` to
      round weights) and removes them when the context ends. Evaluation happens inside it.
    """

    def autocast(self, device: torch.device) -> AbstractContextManager:
        """The context of one forward pass."""
        return nullcontext()

    def scaler(self, device: torch.device) -> torch.amp.GradScaler | None:
        """The loss scaler, or None."""
        return None

    def attach(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> AbstractContextManager:
        """The context of the whole training."""
        return nullcontext()


class Autocast(Precision):
    """Automatic mixed precision: parameters stay as they are, matrix products run in `dtype`.

    float16 has too little range for small gradients and scales the loss (Micikevicius et al. 2018, section 3.2).

    Args:
        dtype: ``torch.bfloat16`` or ``torch.float16``.
    """

    def __init__(self, dtype: torch.dtype):
        if dtype not in (torch.bfloat16, torch.float16):
            raise ValueError(f"dtype must be torch.bfloat16 or torch.float16, got {dtype}")
        self.dtype = dtype

    def autocast(self, device: torch.device) -> AbstractContextManager:
        return torch.autocast(device.type, self.dtype)

    def scaler(self, device: torch.device) -> torch.amp.GradScaler | None:
        return torch.amp.GradScaler(device.type) if self.dtype is torch.float16 else None


def as_precision(precision: str | Precision) -> Precision:
    """``"fp32"``, ``"bf16"`` or ``"fp16"`` as a part; a part as it is."""
    if isinstance(precision, Precision):
        return precision
    if precision == "fp32":
        return Precision()
    if precision == "bf16":
        return Autocast(torch.bfloat16)
    if precision == "fp16":
        return Autocast(torch.float16)
    raise ValueError(f"precision must be 'fp32', 'bf16', 'fp16' or a Precision, got {precision!r}")
