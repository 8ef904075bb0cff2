"""The squared distance of directions."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def normalized_mse(prediction: Float[Tensor, "batch dim"], target: Float[Tensor, "batch dim"]) -> Float[Tensor, ""]:
    """Mean of ``|p / |p| - t / |t||^2 = 2 - 2 cos(p, t)`` (BYOL, Grill et al. 2020, arXiv 2006.07733, equation 2).

    Targets take no gradient. Raises ValueError when the shapes differ.
    """
    if prediction.ndim != 2 or prediction.shape != target.shape:
        got = f"{list(prediction.shape)} and {list(target.shape)}"
        raise ValueError(f"prediction and target must be [batch, dim], got {got}")
    return 2 - 2 * F.cosine_similarity(prediction, target.detach(), dim=1).mean()
