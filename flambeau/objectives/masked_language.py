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
    masked = F.cross_entropy(logits.flatten(0, 1), batch["targets"].flatten(), ignore_index=-100)
    sentence = F.cross_entropy(order, batch["order"])
    return {"loss": masked + sentence, "masked": masked.detach(), "order": sentence.detach()}
