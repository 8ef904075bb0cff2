"""Are two sets of generated sequences from the same distribution? Resampling tests over whole sequences."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from flambeau.generation.state import CausalModel


def mean_gap(
    ours: Float[Tensor, " rows"], theirs: Float[Tensor, " rows"], generator: torch.Generator, *, resamples: int = 4000
) -> tuple[float, float]:
    """Difference of the means, and half the width of its 99 % bootstrap interval."""
    gaps = _resample(ours, resamples, generator) - _resample(theirs, resamples, generator)
    low, high = gaps.quantile(torch.tensor([0.005, 0.995], dtype=gaps.dtype))
    return float(ours.mean() - theirs.mean()), float(high - low) / 2


def usage_gap(
    ours: Int[Tensor, "rows time"],
    theirs: Int[Tensor, "rows time"],
    vocab: int,
    generator: torch.Generator,
    *,
    resamples: int = 4000,
) -> tuple[float, float]:
    """Total variation between the token histograms, and its 99 % quantile when rows change sides at random.

    Rows are exchanged whole, because the tokens of one sequence are not independent.
    """
    rows = torch.cat([ours, theirs])
    histograms = torch.zeros(rows.shape[0], vocab).scatter_add_(1, rows, torch.ones(rows.shape)) / rows.shape[1]
    split = torch.zeros(rows.shape[0])
    split[: ours.shape[0]] = 1.0
    orders = torch.rand(resamples, rows.shape[0], generator=generator).argsort(1)
    sides = torch.cat([split[None], split[orders]])
    gaps = (sides @ histograms / ours.shape[0] - (1 - sides) @ histograms / theirs.shape[0]).abs().sum(1) / 2
    return float(gaps[0]), float(gaps[1:].quantile(0.99))


def _resample(values: Tensor, resamples: int, generator: torch.Generator) -> Tensor:
    values = values.double().cpu()
    return values[torch.randint(len(values), (resamples, len(values)), generator=generator)].mean(1)


@torch.inference_mode()
def sequence_nll(
    model: CausalModel,
    tokens: Int[Tensor, "rows length"],
    new: int,
    *,
    mask: Bool[Tensor, "rows prompt"] | None = None,
    batch: int = 16,
) -> Float[Tensor, " rows"]:
    """Mean negative log-likelihood in nats of the last `new` tokens of each row, under the model as it is (no warping).

    mask: False on left padding; rows with different padding are scored one by one.
    """
    if mask is not None and not bool(mask.all()):
        padding = (~mask).sum(1).tolist()
        rows = [sequence_nll(model, row[None, start:], new) for row, start in zip(tokens, padding)]
        return torch.cat(rows)
    scores = []
    for part in tokens.split(batch):
        cache = model.new_cache(part.shape[0], part.shape[1])
        logits = model(part[:, :-1], positions=None, cache=cache, keep=new)
        picked = logits.float().log_softmax(-1).gather(2, part[:, -new:, None])[..., 0]
        scores.append(-picked.mean(1).cpu())
    return torch.cat(scores)
