"""Batch normalisation that keeps its running statistics while the rest of a model trains."""

from __future__ import annotations

from functools import partial

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def freeze_statistics(model: nn.Module) -> int:
    """Put every batch normalisation into evaluation mode, and keep it there when ``model.train()`` is called.

    Gamma and beta stay trainable; this is how detectors are usually fine-tuned.

    Returns:
        How many there are.

    Raises:
        ValueError: none has running statistics.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.running_mean is not None]
    if not norms:
        raise ValueError(f"{type(model).__name__} has no batch normalisation with running statistics")
    for norm in norms:
        norm.train = partial(_stay_in_eval, norm)
        norm.train()
    return len(norms)


def unfreeze_statistics(model: nn.Module) -> None:
    """Undo :func:`freeze_statistics`: from the next ``model.train()`` on, statistics are those of the batch again."""
    for module in model.modules():
        train = vars(module).get("train")
        if isinstance(train, partial) and train.func is _stay_in_eval:
            del module.train


def _stay_in_eval(norm: nn.Module, mode: bool = True) -> nn.Module:
    return type(norm).train(norm, False)
