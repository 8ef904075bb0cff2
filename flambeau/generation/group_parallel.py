"""Generation of token grids group by group, a group in one forward."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from flambeau.generation.noise import DRAW, Noise
from flambeau.generation.sampler import Sampler, check, draw, guide
from flambeau.nn.kv_cache import KVCache
from flambeau.nn.order import Order


class GroupModel(Protocol):
    """What generation needs: `flambeau.models.token_grid.NAR` and `QueryDecoder` have it."""

    vocab: int
    order: Order
    condition: nn.Module

    def new_cache(self, rows: int) -> KVCache: ...

    def begin(self, cache: KVCache, condition: Tensor, condition_mask: Tensor | None = None) -> Tensor: ...

    def advance(self, cache: KVCache, steps: range, tokens: Tensor, condition_mask: Tensor | None = None) -> Tensor: ...


@dataclass(frozen=True)
class GridGeneration:
    """tokens: the grids. forwards: of the model. seconds: of all of it."""

    tokens: Int[Tensor, "batch ..."]
    forwards: int
    seconds: float


@torch.inference_mode()
def generate_grid(
    model: GroupModel,
    condition: Tensor | None = None,
    *,
    batch: int | None = None,
    condition_mask: Bool[Tensor, "batch conditions"] | None = None,
    cfg_scale: float = 1.0,
    cfg_interval: tuple[int, int] | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    known: Int[Tensor, "batch ..."] | None = None,
    generator: torch.Generator | None = None,
    rows: Int[Tensor, " batch"] | None = None,
) -> GridGeneration:
    """Draw grids: the tokens of a group are independent given those before, so they are drawn together.

    Args:
        condition: labels [batch] or text features [batch, conditions, dim]; None is the null condition of `batch` rows.
        condition_mask: False on padded text features.
        cfg_scale: guidance by the null condition, in a second half of the same cache; 1 is none.
        cfg_interval: (first, last) group that is guided; None guides all.
        temperature, top_k, top_p: of the sampler, applied to all cells of a group at once.
        known: tokens that are given, -1 where they are to be drawn. A cell can be given only if every neighbour of it
            nearer to the origin is (an image continued from a part of it). Groups that are known are fed together.
        generator: seeds noise that is keyed by row and cell: the same grids in any batch.
        rows: identities of the rows for that noise, 0, 1, ... by default.

    Raises:
        ValueError: no number of rows, known cells that others lack (with the cell), tokens outside the vocabulary,
            guidance of an unconditional model, or logits that are NaN.
    """
    if condition is None and batch is None and known is None:
        raise ValueError("give condition, known or batch, to say how many grids are drawn")
    count = len(condition) if condition is not None else len(known) if known is not None else int(batch or 0)
    guided = cfg_scale != 1
    if guided and condition is None:
        raise ValueError(f"cfg_scale={cfg_scale:g} needs a condition: the unconditional model has nothing to guide by")
    order, sampler, noise = model.order, Sampler(temperature, top_k, top_p), Noise(generator)
    device = next(model.parameters()).device  # type: ignore[attr-defined]
    null = model.condition.null(count)
    condition = null if condition is None else condition.to(device)
    conditions = torch.cat([condition, null]) if guided else condition
    if guided and condition_mask is not None:
        condition_mask = torch.cat([condition_mask, torch.ones_like(condition_mask)])
    flat = _known(model, known, count).to(device)
    row_keys = torch.arange(count, device=device) if rows is None else rows.to(device)

    began = time.perf_counter()
    cache = model.new_cache(len(conditions))
    logits, forwards = model.begin(cache, conditions, condition_mask), 1
    given = (flat >= 0).all(0).cpu()
    whole = [bool(given[group].all()) for group in order.groups] if known is not None else [False] * order.steps
    step = 0
    while step < order.steps:
        cells = order.groups[step].to(device)
        if not whole[step]:
            inside = cfg_interval is None or cfg_interval[0] <= step <= cfg_interval[1]
            warped = logits
            if guided:
                conditional, unconditional = logits.chunk(2)
                warped = guide(conditional, unconditional, cfg_scale if inside else 1.0)
            probabilities = sampler.probabilities(warped)
            places = cells.expand(count, -1)
            check(probabilities, places, torch.ones_like(places, dtype=torch.bool), row_keys)
            drawn = draw(probabilities, noise.uniform(row_keys, 0, places, DRAW))
            flat[:, cells] = drawn if known is None else torch.where(flat[:, cells] >= 0, flat[:, cells], drawn)
        # Groups that are known are fed with this one: what follows the last of them is what is needed.
        last = step
        while last + 1 < order.steps and whole[last + 1]:
            last += 1
        if last + 1 < order.steps:
            fed = flat[:, torch.cat(list(order.groups[step : last + 1])).to(device)]
            fed = torch.cat([fed, fed]) if guided else fed
            logits = model.advance(cache, range(step, last + 1), fed, condition_mask)
            logits = logits[:, -len(order.groups[last + 1]) :]
            forwards += 1
        step = last + 1
    return GridGeneration(flat.unflatten(1, order.grid), forwards, time.perf_counter() - began)


def _known(model: GroupModel, known: Tensor | None, count: int) -> Int[Tensor, "batch cells"]:
    order = model.order
    cells = sum(len(group) for group in order.groups)
    if known is None:
        return torch.full((count, cells), -1)
    if known.shape != (count, *order.grid):
        raise ValueError(f"known must be [{count}, {', '.join(map(str, order.grid))}], got {list(known.shape)}")
    if not -1 <= int(known.min()) <= int(known.max()) < model.vocab:
        raise ValueError(
            f"known must hold -1 or tokens 0..{model.vocab - 1}, got {int(known.min())}..{int(known.max())}"
        )
    is_known = (known >= 0).cpu()
    origin = order.coordinates[order.groups[0][0]]
    if order.steps > 1 and len(order.groups[0]) == 1 and _is_diagonal(order):
        _check_closed(is_known, origin.tolist())
    else:
        _check_prefix(is_known.flatten(1), order)
    return known.flatten(1).clone()


def _is_diagonal(order: Order) -> bool:
    distance = (order.coordinates - order.coordinates[order.groups[0][0]]).abs().sum(1)
    return torch.equal(distance, order.step_of)


def _check_closed(known: Bool[Tensor, "batch ..."], origin: list[int]) -> None:
    """Every known cell's neighbours towards the origin are known."""
    for axis in range(known.ndim - 1):
        size = known.shape[axis + 1]
        places = torch.arange(size)
        towards = places - (places - origin[axis]).sign()
        orphan = known & ~known.index_select(axis + 1, towards)
        if bool(orphan.any()):
            row, *cell = orphan.nonzero()[0].tolist()
            raise ValueError(
                f"known: cell {tuple(cell)} of row {row} is given, its neighbour nearer to the origin is not"
            )


def _check_prefix(known: Bool[Tensor, "batch cells"], order: Order) -> None:
    """Every cell of the groups before a known cell's is known."""
    steps = order.step_of
    for row, cells in enumerate(known):
        if bool(cells.any()) and not bool(cells.all()):
            last, missing = int(steps[cells].max()), steps[~cells].min()
            if int(missing) < last:
                cell = ((steps == missing) & ~cells).nonzero()[0, 0]
                place = tuple(order.coordinates[cell].tolist())
                raise ValueError(f"known: cell {place} of row {row} is missing, while later groups are given")


def grid_probabilities(
    model: GroupModel, tokens: Int[Tensor, "batch ..."], condition: Tensor | None = None
) -> Float[Tensor, " batch"]:
    """Probability of each grid as cached generation computes it, group by group; for tests and small studies."""
    count, order = len(tokens), model.order
    cache = model.new_cache(count)
    logits = model.begin(cache, model.condition.null(count) if condition is None else condition)
    flat, total = tokens.flatten(1), torch.zeros(count, dtype=torch.float64)
    for step, cells in enumerate(order.groups):
        chosen = logits.double().log_softmax(-1).gather(2, flat[:, cells, None])[..., 0]
        total += chosen.sum(1).cpu()
        if step + 1 < order.steps:
            logits = model.advance(cache, range(step, step + 1), flat[:, cells])
    return total.exp()
