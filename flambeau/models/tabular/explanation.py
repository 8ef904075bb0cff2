"""Which fields a network combines: what its attention shows, and what its output actually depends on."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from flambeau.models.tabular.autoint import AutoInt

ATTENTION_NOTE = (
    "Attention describes what the network mixes, not what its prediction depends on. Pair importance is measured by "
    "intervening on the inputs; trust a pair that both name."
)


@torch.no_grad()
def mean_attention(
    model: AutoInt,
    ids: Int[Tensor, "rows slots"],
    values: Float[Tensor, "rows slots"],
    *,
    layer: int = 0,
    batch_size: int = 4096,
) -> Float[Tensor, "fields fields"]:
    """Attention of one layer, averaged over rows and heads; rows of the matrix sum to 1. In evaluation mode.

    Raises:
        ValueError: no rows, or a layer that the model does not have.
    """
    if not len(ids):
        raise ValueError("ids: no rows to explain")
    if not 0 <= layer < len(model.layers):
        raise ValueError(f"layer must lie in 0 ... {len(model.layers) - 1}, got {layer}")
    training = model.training
    model.eval()
    parts = zip(ids.split(batch_size), values.split(batch_size))
    total = torch.stack([model.attention(*part)[:, layer].mean(1).sum(0) for part in parts]).sum(0)
    model.train(training)
    return total / len(ids)


@torch.no_grad()
def pair_importance(
    predict: Callable[[Tensor, Tensor], Tensor],
    ids: Int[Tensor, "rows slots"],
    values: Float[Tensor, "rows slots"],
    slots: Sequence[int],
    *,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "fields fields"]:
    """How much the logit depends on two fields together, beyond each alone; symmetric, zero on the diagonal.

    For fields i and j, cells are replaced by those of a random other row: the root mean square of
    ``f(x) - f(x_i') - f(x_j') + f(x_ij')``. It is zero if and only if the logit is additive in the two fields around
    the rows tried (the mixed difference behind the H statistic of Friedman and Popescu 2008, section 8.1). It needs no
    labels and no access to the model.

    Args:
        predict: ``(ids, values) -> logits [rows]``, in evaluation mode.
        slots: of each field (``schema.slots``).
        generator: for the rows that cells are taken from.
    """
    starts = [sum(slots[:position]) for position in range(len(slots))]
    columns = [slice(start, start + width) for start, width in zip(starts, slots)]
    donor = torch.randperm(len(ids), generator=generator).to(ids.device)

    def replaced(*fields: int) -> Tensor:
        new_ids, new_values = ids.clone(), values.clone()
        for position in fields:
            new_ids[:, columns[position]] = ids[donor, columns[position]]
            new_values[:, columns[position]] = values[donor, columns[position]]
        return predict(new_ids, new_values).double()

    base = predict(ids, values).double()
    alone = [replaced(position) for position in range(len(slots))]
    importance = torch.zeros(len(slots), len(slots))
    for i in range(len(slots)):
        for j in range(i):
            mixed = base - alone[i] - alone[j] + replaced(i, j)
            importance[i, j] = importance[j, i] = mixed.square().mean().sqrt()
    return importance


def strongest_pairs(matrix: Float[Tensor, "fields fields"], count: int) -> list[tuple[int, int]]:
    """The `count` pairs (i < j) of different fields with the largest ``matrix[i, j] + matrix[j, i]``, largest first."""
    first, second = torch.triu_indices(len(matrix), len(matrix), 1)
    strength = (matrix + matrix.T).cpu()[first, second]
    return [(int(first[place]), int(second[place])) for place in strength.argsort(descending=True, stable=True)[:count]]


def agreement(first: Float[Tensor, "fields fields"], second: Float[Tensor, "fields fields"]) -> float:
    """Spearman's rank correlation of two matrices over the pairs of different fields, each made symmetric.

    NaN with fewer than three fields.
    """
    from scipy.stats import spearmanr

    if len(first) < 3:
        return float("nan")
    upper = torch.triu_indices(len(first), len(first), 1)
    return float(spearmanr(*[(matrix + matrix.T).cpu()[upper[0], upper[1]].numpy() for matrix in (first, second)])[0])
