"""Ring attention in one pass, with a running softmax: memory per rank grows with its own tokens only."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from flambeau.nn.ring.problem import Problem, accumulator, gathered, products, weighted


class BlockwiseRing(torch.autograd.Function):
    """Keys and values travel together; each rank updates maximum, denominator and output of its queries.

    Saved are queries, keys, values, output and log-sum-exp. The backward sends keys and values around again and
    recomputes the probabilities; the gradients of a chunk travel behind it and are sent home from its last rank.
    Online softmax as in FlashAttention-2 (Dao 2023, arXiv 2307.08691), the ring as in Li et al. 2023.
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
        output = torch.zeros_like(q, memory_format=torch.contiguous_format)
        total = q.new_zeros(q.shape[:-1])
        largest = torch.full_like(total, -math.inf)
        chunk = torch.stack((keys, values))
        for hop, owner in enumerate(problem.holders()):
            travelling = hop < len(problem.route.hops)
            arriving = problem.transport.exchange(chunk, problem.route.hops[hop]) if travelling else None
            k, v = chunk.to(dtype).unbind()
            for tile in problem.tiles(owner, q):
                scores = tile.scores(q, k)
                maximum = torch.maximum(largest[..., tile.rows], scores.amax(-1))
                # A row that has seen no key yet keeps the maximum -inf; its exponentials are 0, not NaN.
                shift = maximum.masked_fill(maximum == -math.inf, 0)
                weights = scores.sub_(shift[..., None]).exp_()
                decay = (largest[..., tile.rows] - shift).exp_()
                total[..., tile.rows] = total[..., tile.rows] * decay + weights.sum(-1)
                keep = tile.keep(weights)
                if keep is not None:
                    weights = weights * keep
                output[..., tile.rows, :] = output[..., tile.rows, :] * decay[..., None] + weighted(
                    weights, v[:, :, tile.columns]
                )
                largest[..., tile.rows] = maximum
            if arriving is not None:
                chunk = arriving.wait()
        empty = total == 0
        output /= total.masked_fill(empty, 1)[..., None]
        # Heads innermost, so that putting them together for the projection behind is a view of what is saved here.
        output = queries.new_empty([output.shape[i] for i in (0, 3, 1, 2, 4)]).permute(0, 2, 3, 1, 4).copy_(output)
        logsumexp = (largest + total.log()).masked_fill_(empty, math.inf)  # so that exp(score - logsumexp) is 0
        ctx.save_for_backward(queries, keys, values, output, logsumexp)
        ctx.problem = problem
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:  # type: ignore[override]
        queries, keys, values, output, logsumexp = ctx.saved_tensors
        problem: Problem = ctx.problem
        q, do = queries.to(logsumexp.dtype), gradient.to(logsumexp.dtype)
        delta = (do * output).sum(-1)
        dq = torch.zeros_like(q, memory_format=torch.contiguous_format)
        chunk = torch.stack((keys, values))
        behind = None  # gradients of the held chunk from the ranks it has been to
        for hop, owner in enumerate(problem.holders()):
            travelling = hop < len(problem.route.hops)
            arriving = problem.transport.exchange(chunk, problem.route.hops[hop]) if travelling else None
            k, v = chunk.to(q.dtype).unbind()
            local = torch.zeros_like(chunk, dtype=q.dtype)
            for tile in problem.tiles(owner, q):
                rows, columns = tile.rows, tile.columns
                weights = tile.scores(q, k).sub_(logsumexp[..., rows, None]).exp_()
                dweights = products(do[..., rows, :], v[:, :, columns])
                keep = tile.keep(weights)
                if keep is None:
                    local[1, :, :, columns] += gathered(weights, do[..., rows, :])
                else:
                    local[1, :, :, columns] += gathered(weights * keep, do[..., rows, :])
                    dweights *= keep
                dscores = dweights.sub_(delta[..., rows, None]).mul_(weights).mul_(problem.scale)
                dq[..., rows, :] += weighted(dscores, k[:, :, columns])
                local[0, :, :, columns] += gathered(dscores, q[..., rows, :])
            if behind is not None:
                local += behind.wait()
            if problem.route.hops:
                receivers = problem.route.hops[hop] if travelling else problem.route.home
                behind = problem.transport.exchange(local, receivers)
            if arriving is not None:
                chunk = arriving.wait()
        dk, dv = (local if behind is None else behind.wait()).to(keys.dtype).unbind()
        return dq.to(queries.dtype), dk, dv, None
