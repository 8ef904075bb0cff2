"""Next-token prediction."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn


def next_token_nll(model: nn.Module, tokens: Int[Tensor, "batch time"]) -> Float[Tensor, "batch predicted"]:
    """Negative log-likelihood in nats of every token but the first, each given those before it."""
    logits = model(tokens[:, :-1])
    return F.cross_entropy(logits.transpose(1, 2).float(), tokens[:, 1:], reduction="none")


def next_token_loss(model: nn.Module, tokens: Int[Tensor, "batch time"]) -> Float[Tensor, ""]:
    """Mean of `next_token_nll`, the training loss of an autoregressive model."""
    return next_token_nll(model, tokens).mean()
