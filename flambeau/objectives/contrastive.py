"""Contrastive losses: one positive among many negatives."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from flambeau.nn.collectives import gather_summing


def info_nce(
    queries: Float[Tensor, "batch dim"],
    keys: Float[Tensor, "batch dim"],
    *,
    temperature: float = 0.2,
    negatives: Float[Tensor, "count dim"] | None = None,
    group: Any = None,
) -> Float[Tensor, ""]:
    """-log softmax of each query's own key among all keys (van den Oord et al. 2018, arXiv 1807.03748, equation 4).

    Vectors are normalised here. keys: key i belongs to query i; the others are its negatives. They take gradients if
    they have any. negatives: further ones, for all queries (a queue); with them the other keys of the batch are not
    used, as in MoCo (He et al. 2020, arXiv 1911.05722). group: processes whose keys are negatives too; each process
    returns the mean over its own queries.

    Raises:
        ValueError: shapes differ, fewer than two keys to tell apart, or a temperature that is not positive.
    """
    if queries.ndim != 2 or queries.shape != keys.shape:
        raise ValueError(f"queries and keys must be [batch, dim], got {list(queries.shape)} and {list(keys.shape)}")
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    queries, keys = F.normalize(queries, dim=1), F.normalize(keys, dim=1)
    if negatives is not None:
        positive = (queries * keys).sum(1, keepdim=True)
        logits = torch.cat([positive, queries @ F.normalize(negatives, dim=1).T], 1)
        return F.cross_entropy(logits / temperature, torch.zeros(len(queries), dtype=torch.long, device=keys.device))
    first = 0
    if group is not None:
        keys, first = gather_summing(keys, 0, group), dist.get_rank(group) * len(queries)
    if len(keys) < 2:
        raise ValueError("a contrastive loss needs at least two samples, got a batch of 1")
    targets = torch.arange(first, first + len(queries), device=keys.device)
    return F.cross_entropy(queries @ keys.T / temperature, targets)


def nt_xent(
    first: Float[Tensor, "batch dim"],
    second: Float[Tensor, "batch dim"],
    *,
    temperature: float = 0.5,
    group: Any = None,
) -> Float[Tensor, ""]:
    """Two views of each sample, each to be found among all other views (SimCLR, Chen et al. 2020, arXiv 2002.05709).

    A view's negatives are both views of every other sample, of all processes of `group`; each process returns the mean
    over its own views. Raises ValueError as `info_nce`.
    """
    if first.ndim != 2 or first.shape != second.shape:
        raise ValueError(f"both views must be [batch, dim], got {list(first.shape)} and {list(second.shape)}")
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    own = F.normalize(torch.stack([first, second], 1).flatten(0, 1), dim=1)  # views of a sample are neighbours
    every, start = own, 0
    if group is not None:
        every, start = gather_summing(own, 0, group), dist.get_rank(group) * len(own)
    if len(every) < 4:
        raise ValueError("a contrastive loss needs at least two samples, got a batch of 1")
    rows = torch.arange(len(own), device=own.device)
    logits = (own @ every.T / temperature).masked_fill(
        torch.arange(len(every), device=own.device) == (rows + start)[:, None], -torch.inf
    )
    return F.cross_entropy(logits, start + (rows ^ 1))
