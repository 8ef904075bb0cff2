"""Ring attention as published: the ring completes whole rows of scores, a second one sums values with them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from flambeau.nn.ring.problem import Problem, Tile, accumulator, gathered, products, weighted


class TwoPhaseRing(torch.autograd.Function):
    """Ring-QK, softmax over full rows, Ring-AV (Li et al. 2023, arXiv 2105.13120, sections 3.2.1 and 3.2.2).

    Saved are queries, keys, values and the probabilities, [batch, heads, chunk, length]. Where the paper all-reduces
    the gradients of keys and values, here they travel with the chunk they belong to, as in `BlockwiseRing`.
    """

    @staticmethod
    def forward(
        ctx: Any,
        queries: Float[Tensor, "b h g q d"],
        keys: Float[Tensor, "b h k d"],
        values: Float[Tensor, "b h k d"],
        problem: Problem,
    ) -> Float[Tensor, "b h g q d"]:
        dtype = accumulator(queries.dtype)
        q = queries.to(dtype)
        chunk = keys.shape[2]
        scores = q.new_full((*q.shape[:-1], problem.transport.size * chunk), -math.inf)
        output = torch.zeros_like(q, memory_format=torch.contiguous_format)

        def fill(tile: Tile, k: Tensor) -> None:
            scores[..., _block(tile.owner, chunk)] = tile.scores(q, k)

        def sum_values(tile: Tile, v: Tensor) -> None:
            weights = probabilities[..., _block(tile.owner, chunk)].to(dtype)
            keep = tile.keep(weights)
            output.add_(weighted(weights if keep is None else weights * keep, v))

        _around(problem, keys, q, fill)
        empty = scores.amax(-1, keepdim=True) == -math.inf  # rows without any key
        probabilities = scores.softmax(-1).masked_fill_(empty, 0).to(queries.dtype)
        _around(problem, values, q, sum_values)
        output = output.to(queries.dtype)
        ctx.save_for_backward(queries, keys, values, probabilities)
        ctx.problem = problem
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:  # type: ignore[override]
        queries, keys, values, probabilities = ctx.saved_tensors
        problem: Problem = ctx.problem
        dtype = accumulator(queries.dtype)
        q, do = queries.to(dtype), gradient.to(dtype)
        chunk = keys.shape[2]
        dscores = torch.zeros_like(probabilities, dtype=dtype)
        dq = torch.zeros_like(q, memory_format=torch.contiguous_format)

        def of_values(tile: Tile, v: Tensor) -> Tensor:
            weights = probabilities[..., _block(tile.owner, chunk)].to(dtype)
            dweights = products(do, v)
            keep = tile.keep(weights)
            if keep is not None:
                dweights, weights = dweights * keep, weights * keep
            dscores[..., _block(tile.owner, chunk)] = dweights
            return gathered(weights, do)

        def of_keys(tile: Tile, k: Tensor) -> Tensor:
            part = dscores[..., _block(tile.owner, chunk)]
            dq.add_(weighted(part, k))
            return gathered(part, q)

        dv = _around(problem, values, q, of_values, gradients=True)
        weights = probabilities.to(dtype)
        dscores.sub_((dscores * weights).sum(-1, keepdim=True)).mul_(weights).mul_(problem.scale)
        del weights
        dk = _around(problem, keys, q, of_keys, gradients=True)
        return dq.to(queries.dtype), dk.to(keys.dtype), dv.to(values.dtype), None


def _block(owner: int, chunk: int) -> slice:
    return slice(owner * chunk, (owner + 1) * chunk)


def _around(
    problem: Problem,
    chunk: Tensor,
    queries: Tensor,
    function: Callable[[Tile, Tensor], Tensor | None],
    gradients: bool = False,
) -> Tensor:
    """Send `chunk` around and call `function` on each visible one. With `gradients`, the sum of what it returns for a
    chunk travels behind it and is given back to its owner."""
    behind: Any = None
    local = chunk
    for hop, owner in enumerate(problem.holders()):
        travelling = hop < len(problem.route.hops)
        arriving = problem.transport.exchange(chunk, problem.route.hops[hop]) if travelling else None
        result: Tensor | None = None
        for tile in problem.tiles(owner, queries, whole=True):
            result = function(tile, chunk.to(queries.dtype))
        if gradients:
            local = torch.zeros_like(chunk, dtype=queries.dtype) if result is None else result
            if behind is not None:
                local = local + behind.wait()
            if problem.route.hops:
                receivers = problem.route.hops[hop] if travelling else problem.route.home
                behind = problem.transport.exchange(local, receivers)
        if arriving is not None:
            chunk = arriving.wait()
    return local if behind is None else behind.wait()
