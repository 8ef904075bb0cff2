"""Rules on logits that see the absolute position and the history of every window slot."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Slots:
    """What the slots of one forward are about.

    tokens: [batch, prompt + generated], committed tokens followed by the drafts under test.
    prompt: number of prompt columns. starts: first real token of each row (left padding before it), [batch].
    positions: column of `tokens` that slot predicts, [batch, time]; its history is the columns before it.
    rows: place of each row in the request, [batch]. requested: rows of the request, of which some may have ended.
    """

    tokens: Int[Tensor, "batch length"]
    prompt: int
    starts: Int[Tensor, " batch"]
    positions: Int[Tensor, "batch time"]
    rows: Int[Tensor, " batch"]
    requested: int


Processor = Callable[[Tensor, Slots], Tensor]


@dataclass(frozen=True)
class RepetitionPenalty:
    """Divide positive and multiply negative logits of tokens seen before a slot (Keskar et al. 2019, 1909.05858).

    penalty: above 1 discourages repetition.
    """

    penalty: float

    def __post_init__(self) -> None:
        if not self.penalty > 0:
            raise ValueError(f"penalty must be positive, got {self.penalty}")

    def __call__(self, logits: Float[Tensor, "batch time vocab"], slots: Slots) -> Tensor:
        batch, length = slots.tokens.shape
        columns = torch.arange(length, device=logits.device)
        processed = []
        for slot in range(logits.shape[1]):
            history = (columns >= slots.starts[:, None]) & (columns < slots.positions[:, slot, None])
            # Input-only tokens (start, class) have no logit to change; they and masked columns fall in a spare one.
            history &= slots.tokens < logits.shape[-1]
            seen = torch.zeros(batch, logits.shape[-1] + 1, dtype=torch.bool, device=logits.device)
            seen.scatter_(1, torch.where(history, slots.tokens, logits.shape[-1]), True)
            row = logits[:, slot]
            penalised = torch.where(row > 0, row / self.penalty, row * self.penalty)
            processed.append(torch.where(seen[:, :-1], penalised, row))
        return torch.stack(processed, 1)


@dataclass(frozen=True)
class EndOfLine:
    """Force `eol_id` behind every row of `width` image tokens and forbid it elsewhere.

    prefix: generated tokens before the image starts.
    """

    width: int
    eol_id: int
    prefix: int = 0

    def __call__(self, logits: Float[Tensor, "batch time vocab"], slots: Slots) -> Tensor:
        place = slots.positions - slots.prompt - self.prefix
        forced = (place >= 0) & (place % (self.width + 1) == self.width)
        is_eol = torch.arange(logits.shape[-1], device=logits.device) == self.eol_id
        return logits.masked_fill(forced[..., None] != is_eol, -torch.inf)


@dataclass(frozen=True)
class AllowedTokens:
    """Only tokens low..high-1 may be drawn (for example the image part of a mixed vocabulary)."""

    low: int
    high: int

    def __call__(self, logits: Float[Tensor, "batch time vocab"], slots: Slots) -> Tensor:
        tokens = torch.arange(logits.shape[-1], device=logits.device)
        return logits.masked_fill((tokens < self.low) | (tokens >= self.high), -torch.inf)


@dataclass(frozen=True)
class PerSlot:
    """Apply a processor of one position a row, such as transformers', to every slot.

    processor: f(tokens [batch, history], logits [batch, vocab]) -> logits. It is called once per distinct position,
    always with all rows of the request and their left padding, since it may keep something per row; results of rows
    that have no slot at the position are ignored.
    """

    processor: Callable[[Tensor, Tensor], Any]

    def __call__(self, logits: Float[Tensor, "batch time vocab"], slots: Slots) -> Tensor:
        processed = logits.clone()
        for position in slots.positions.unique().tolist():
            at, slot = (slots.positions == position).nonzero(as_tuple=True)
            tokens = slots.tokens.new_zeros(slots.requested, position)
            scores = logits.new_zeros(slots.requested, logits.shape[-1])
            # Several slots of one row share a position only behind its end, where nothing is used.
            tokens[slots.rows[at]] = slots.tokens[at, :position]
            scores[slots.rows[at]] = logits[at, slot]
            processed[at, slot] = self.processor(tokens, scores)[slots.rows[at]]
        return processed
