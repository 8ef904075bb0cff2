"""Assignments of samples to prototypes that use every prototype equally."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from flambeau.nn.collectives import all_gather


@torch.no_grad()
def sinkhorn(
    scores: Float[Tensor, "batch prototypes"], *, epsilon: float = 0.05, iterations: int = 3, group: Any = None
) -> Float[Tensor, "batch prototypes"]:
    """Soft assignments Q: each row sums to 1, each column to batch / prototypes, as near ``exp(scores / epsilon)``.

    The Sinkhorn-Knopp iteration of SwAV (Caron et al. 2020, arXiv 2006.09882, equation 3 and appendix A.1), on
    logarithms: ``exp`` of large scores overflows otherwise. Rows are exact, columns as far as the iterations go. Q
    takes no gradient. epsilon: a larger one gives softer assignments. group: processes whose batches, of equal sizes,
    are assigned together.

    Raises:
        ValueError: scores that are no matrix, `epsilon` not positive, or fewer than one iteration.
    """
    if scores.ndim != 2:
        raise ValueError(f"scores must be [batch, prototypes], got {list(scores.shape)}")
    if not epsilon > 0 or iterations < 1:
        raise ValueError(f"epsilon must be positive and iterations at least 1, got {epsilon} and {iterations}")
    log_q = scores.float() / epsilon
    batch = len(log_q) * (1 if group is None else dist.get_world_size(group))
    for _ in range(iterations):
        columns = log_q.logsumexp(0, keepdim=True)
        if group is not None:
            columns = all_gather(columns, 0, group).logsumexp(0, keepdim=True)
        log_q = log_q - columns + math.log(batch / log_q.shape[1])
        log_q = log_q - log_q.logsumexp(1, keepdim=True)
    return log_q.exp()
