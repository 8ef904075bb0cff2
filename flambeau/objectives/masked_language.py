"""Masked-token prediction and sentence order."""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn


def masked_language_loss(model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Mean cross entropy (nats) of the masked tokens of the batch, and of the order of the two pieces of each row.

    model: a `BERT`, called with tokens, mask and segments. batch: ``tokens``, ``targets`` (-100 where nothing is
    predicted), ``segments``, ``order``, and a ``mask`` if there is padding. Returns loss (their sum), masked and order.
    """
    logits, order = model(batch["tokens"], batch.get("mask"), batch["segments"])
    # The model's own cross entropy: under a plan that splits the vocabulary no process has all logits.
    predicted = (batch["targets"] != -100).sum().clamp(min=1)
    masked = model.cross_entropy(logits, batch["targets"]).sum() / predicted
    sentence = F.cross_entropy(order, batch["order"])
    return {"loss": masked + sentence, "masked": masked.detach(), "order": sentence.detach()}
