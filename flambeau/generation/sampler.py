"""From logits to normalised probabilities, once, and from probabilities to tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from flambeau.generation.processors import Processor, Slots


def guide(
    conditional: Float[Tensor, "batch time vocab"], unconditional: Float[Tensor, "batch time vocab"], scale: float
) -> Float[Tensor, "batch time vocab"]:
    """Classifier-free guidance: unconditional + scale (conditional - unconditional) (Ho and Salimans 2022)."""
    return conditional if scale == 1 else torch.lerp(unconditional, conditional, scale)


@dataclass(frozen=True)
class Sampler:
    """Warps logits to the distribution that is sampled: processors, temperature, top-k, top-p, softmax.

    Every slot of a window goes through it once, together; acceptance tests and residuals work on its output and
    never warp again. Processors come first, so that a token they force survives the truncations.

    temperature: 0 puts all mass on the largest logit. top_k: keep the k largest. top_p: keep the smallest set whose
    mass reaches p. processors: callables (logits [batch, time, vocab], Slots) -> logits.
    Raises ValueError for values out of range and for logits that are NaN or leave nothing to draw, with the position.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    processors: tuple[Processor, ...] = ()

    def __post_init__(self) -> None:
        if not self.temperature >= 0:
            raise ValueError(f"temperature must be at least 0, got {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k must be at least 1, got {self.top_k}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must lie in (0, 1], got {self.top_p}")

    def probabilities(
        self, logits: Float[Tensor, "batch time vocab"], slots: Slots | None = None
    ) -> Float[Tensor, "batch time vocab"]:
        """Normalised probabilities, at least single precision. `slots` is needed with processors only."""
        for processor in self.processors:
            if slots is None:
                raise ValueError("processors need slots")
            logits = processor(logits, slots)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        if self.temperature == 0:
            best = torch.zeros_like(logits).scatter_(-1, logits.argmax(-1, keepdim=True), 1.0)
            # argmax of a NaN row is an index like any other: keep the NaN visible to `check`.
            return torch.where(logits.isnan().any(-1, keepdim=True), torch.nan, best)
        if self.temperature != 1:
            logits = logits / self.temperature
        if self.top_k is not None and self.top_k < logits.shape[-1]:
            values, tokens = logits.topk(self.top_k, -1)
            probabilities = values.softmax(-1) if self.top_p is None else _nucleus(values, self.top_p)
            return torch.zeros_like(logits).scatter_(-1, tokens, probabilities)
        if self.top_p is not None and self.top_p < 1:
            values, tokens = logits.sort(-1, descending=True)
            return torch.zeros_like(logits).scatter_(-1, tokens, _nucleus(values, self.top_p))
        return logits.softmax(-1)


def check(
    probabilities: Float[Tensor, "batch time vocab"],
    positions: Int[Tensor, "batch time"],
    real: Bool[Tensor, "batch time"],
    rows: Int[Tensor, " batch"],
) -> None:
    """Raise ValueError naming row and generated position where logits were NaN or allowed no token.

    real: slots that are looked at; the others are padding. rows: names of the rows.
    """
    bad = probabilities.sum(-1).isnan() & real
    if bool(bad.any()):
        row, slot = bad.nonzero()[0].tolist()
        position = int(positions[row, slot])
        raise ValueError(
            f"logits of row {int(rows[row])} at generated position {position} are NaN, infinite or all masked"
        )


def draw(probabilities: Float[Tensor, "*batch vocab"], uniform: Float[Tensor, "*batch"]) -> Int[Tensor, "*batch"]:
    """One token per distribution by inverting its cumulative sum at one uniform; weights need not sum to one."""
    cumulative = probabilities.cumsum(-1, dtype=torch.float64)
    target = uniform.double()[..., None] * cumulative[..., -1:]
    return torch.searchsorted(cumulative, target, right=True)[..., 0]


def _nucleus(sorted_logits: Tensor, top_p: float) -> Tensor:
    """Probabilities of descending logits with everything behind the first mass of `top_p` removed."""
    probabilities = sorted_logits.softmax(-1)
    before = probabilities.cumsum(-1) - probabilities
    kept = torch.where(before < top_p, probabilities, 0.0)
    return kept / kept.sum(-1, keepdim=True)
