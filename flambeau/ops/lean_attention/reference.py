"""Decode attention in plain PyTorch: the definition, and the monoid that makes any split of the keys exact.

Sanovar et al., "Lean Attention" (2024), section 3 (softmax re-scaling as an associative operator).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from flambeau.ops.lean_attention.plan import LeanPlan


@dataclass(frozen=True)
class SoftmaxState:
    """Softmax attention over a set of keys, not yet normalised: an element of a commutative monoid under ``+``.

    Also what ranks exchange that hold different parts of one sequence (``merge_states``).

    Args:
        m: largest score, -inf for no keys, [...].
        l: sum of exp(score - m), [...].
        o: sum of exp(score - m) times value, [..., dim].
    """

    m: Float[Tensor, ...]
    l: Float[Tensor, ...]
    o: Float[Tensor, "... dim"]

    @staticmethod
    def identity(shape: tuple[int, ...], dim: int, like: Tensor) -> SoftmaxState:
        """The state over no keys."""
        return SoftmaxState(like.new_full(shape, -torch.inf), like.new_zeros(shape), like.new_zeros(*shape, dim))

    @staticmethod
    def of(scores: Float[Tensor, "... keys"], values: Float[Tensor, "... keys dim"]) -> SoftmaxState:
        """The state over these keys; a score of -inf is a key that is not there."""
        m = scores.amax(-1) if scores.shape[-1] else scores.new_full(scores.shape[:-1], -torch.inf)
        weights = torch.exp(scores - _finite(m)[..., None])
        return SoftmaxState(m, weights.sum(-1), (weights[..., None, :] @ values)[..., 0, :])

    def __add__(self, other: SoftmaxState) -> SoftmaxState:
        m = torch.maximum(self.m, other.m)
        mine, theirs = torch.exp(self.m - _finite(m)), torch.exp(other.m - _finite(m))
        return SoftmaxState(m, mine * self.l + theirs * other.l, mine[..., None] * self.o + theirs[..., None] * other.o)

    def output(self) -> Tensor:
        """Normalised attention, zero over no keys."""
        return self.o / torch.where(self.l > 0, self.l, 1)[..., None]

    def lse(self) -> Tensor:
        """Logarithm of the sum of exponentiated scores, -inf over no keys."""
        return self.m + torch.log(self.l)


def _finite(m: Tensor) -> Tensor:
    """-inf minus -inf is not a number; over no keys every exponent is -inf whatever is subtracted."""
    return torch.where(m == -torch.inf, torch.zeros_like(m), m)


def merge_states(
    outputs: Float[Tensor, "parts ... dim"], lses: Float[Tensor, "parts ..."]
) -> tuple[Float[Tensor, "... dim"], Float[Tensor, ...]]:
    """Attention over a whole cache from (output, lse) over its parts, as when ranks hold parts of one sequence.

    A part's output is its unnormalised sum divided by l, so (m, l, o) = (lse, 1, output) is the same state.
    """
    empty = lses == -torch.inf
    states = [SoftmaxState(lse, (~none).to(lse), out) for out, lse, none in zip(outputs.to(lses), lses, empty)]
    total = states[0]
    for state in states[1:]:
        total = total + state
    return total.output().to(outputs.dtype), total.lse()


def visible_keys(
    lengths: Int[Tensor, " batch"], queries: int, starts: Int[Tensor, " batch"] | None, window: int
) -> Int[Tensor, " batch"]:
    """First key any query of each row attends to; a window of 0 is none."""
    first = torch.zeros_like(lengths) if starts is None else torch.minimum(starts.to(lengths).clamp(min=0), lengths)
    if window:
        first = torch.maximum(first, lengths - queries - window + 1)
    return torch.minimum(first.clamp(min=0), lengths)


def attention_scores(
    q: Float[Tensor, "queries heads dim"],
    k: Float[Tensor, "kv_heads keys dim"],
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
    first: int = 0,
    slopes: Float[Tensor, " heads"] | None = None,
    tail_mask: Bool[Tensor, "queries queries"] | None = None,
) -> Float[Tensor, "kv_heads group queries keys"]:
    """Scores of one row whose keys all exist, -inf where a query does not look, nor any before key ``first``."""
    queries, heads, dim = q.shape
    kv_heads, keys, _ = k.shape
    scores = (q.transpose(0, 1).reshape(kv_heads, -1, dim) @ k.mT).view(
        kv_heads, heads // kv_heads, queries, keys
    ) * scale
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    key = torch.arange(keys, device=q.device)
    position = torch.arange(keys - queries, keys, device=q.device)[:, None]
    if slopes is not None:
        scores = scores - slopes.to(scores).view(kv_heads, heads // kv_heads, 1, 1) * (position - key)
    seen = key <= position
    if tail_mask is not None:
        tail = key - (keys - queries)  # a key's number among the newest
        chosen = tail_mask.gather(1, tail.clamp(min=0).expand(queries, -1))
        seen = torch.where(tail < 0, True, chosen) & (position >= 0)
    seen = seen & (key >= first)
    if window:
        seen = seen & (key > position - window)
    return scores.masked_fill(~seen, -torch.inf)


def lean_reference(
    q: Float[Tensor, "batch queries heads dim"],
    k: Float[Tensor, "pages kv_heads page dim"],
    v: Float[Tensor, "pages kv_heads page dim"],
    lengths: Int[Tensor, " batch"],
    block_table: Int[Tensor, "batch blocks"] | None = None,
    starts: Int[Tensor, " batch"] | None = None,
    slopes: Float[Tensor, "batch heads"] | None = None,
    sinks: Float[Tensor, " heads"] | None = None,
    tail_mask: Bool[Tensor, "batch queries queries"] | None = None,
    scale: float = 1.0,
    window: int = 0,
    softcap: float = 0.0,
    plan: LeanPlan | None = None,
) -> tuple[Float[Tensor, "batch queries heads dim"], Float[Tensor, "batch queries heads"]]:
    """Output and log-sum-exp, in the precision of ``q`` (the caller promotes); row by row.

    Args:
        plan: compute the segments of this plan and combine them, instead of all keys of a row at once.
    """
    batch, queries, heads, dim = q.shape
    kv_heads = k.shape[1]
    first = visible_keys(lengths, queries, starts, window)
    outputs, lses = torch.zeros_like(q), q.new_full(q.shape[:3], -torch.inf)
    for row in range(batch):
        length, begin = int(lengths[row]), int(first[row])
        if block_table is None:
            keys, values = k[row, :, :length], v[row, :, :length]
        else:
            pages = block_table[row, : -(-length // k.shape[2])].long()
            keys, values = (x[pages].transpose(0, 1).flatten(1, 2)[:, :length] for x in (k, v))
        mask = None if tail_mask is None else tail_mask[row]
        slope = None if slopes is None else slopes[row]
        scores = attention_scores(q[row], keys.to(q), scale, window, softcap, begin, slope, mask)
        shape = (kv_heads, heads // kv_heads, queries)
        states = [SoftmaxState.identity(shape, dim, q)]
        if plan is None:
            states.append(_state(scores, values.to(q), range(begin, length)))
        else:
            parts = [[SoftmaxState.identity((1, *shape[1:]), dim, q)] for _ in range(kv_heads)]
            for segment in plan.segments:
                if segment.output // plan.kv_heads == row:
                    head, span = segment.output % plan.kv_heads, plan.keys(segment)
                    span = range(begin + span.start, begin + span.stop)
                    state = _state(scores[head : head + 1], values[head : head + 1].to(q), span)
                    parts[head].append(state)
            sums = [_sum(part) for part in parts]
            states.append(SoftmaxState(*(torch.cat([getattr(s, name) for s in sums]) for name in ("m", "l", "o"))))
        if sinks is not None:  # one more key, of value zero
            sink = sinks.to(q).view(*shape[:2], 1).expand(shape)
            states.append(SoftmaxState(sink, torch.ones_like(sink), q.new_zeros(*shape, dim)))
        total = _sum(states)
        outputs[row] = total.output().flatten(0, 1).transpose(0, 1)
        lses[row] = total.lse().flatten(0, 1).T
    return outputs, lses


def _state(scores: Tensor, values: Tensor, keys: range) -> SoftmaxState:
    span = slice(keys.start, keys.stop)
    return SoftmaxState.of(scores[..., span], values[:, None, None, span])


def _sum(states: list[SoftmaxState]) -> SoftmaxState:
    total = states[0]
    for state in states[1:]:
        total = total + state
    return total
