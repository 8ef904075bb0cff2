"""Associative recall across a distance: a task that a window cannot solve and a look-up by content can."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor


@dataclass(frozen=True)
class Recall:
    """Sequences of three parts: `pairs` (key, value) tokens in random order, `distractors` tokens whose keys are never
    asked for, and the keys again in another order with the value hidden.

    The shortest distance between a question and its answer is distractors + 1, the mean pairs + distractors. Keys are
    numbered 0..pairs-1, distractors have keys pairs..2*pairs-1 and random values, the hidden value is number `values`.

    pairs, distractors: tokens of each part. values: different values, drawn independently for every pair.
    Raises ValueError for pairs below 1, distractors below 0 or fewer than 2 values.
    """

    pairs: int = 64
    distractors: int = 128
    values: int = 16

    def __post_init__(self) -> None:
        for name, least in (("pairs", 1), ("distractors", 0), ("values", 2)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")

    @property
    def length(self) -> int:
        """Tokens in a sequence."""
        return 2 * self.pairs + self.distractors

    def sample(
        self, batch: int, generator: torch.Generator
    ) -> tuple[Int[Tensor, "batch time 2"], Int[Tensor, "batch pairs"]]:
        """(key, value) of every token, and the hidden values of the last `pairs` tokens."""

        def orders() -> Tensor:
            return torch.rand(batch, self.pairs, generator=generator).argsort(1)

        first, asked = orders(), orders()
        value_of = torch.randint(self.values, (batch, self.pairs), generator=generator)
        between = torch.randint(self.pairs, 2 * self.pairs, (batch, self.distractors), generator=generator)
        noise = torch.randint(self.values, (batch, self.distractors), generator=generator)
        keys = torch.cat([first, between, asked], 1)
        values = torch.cat([value_of.gather(1, first), noise, torch.full_like(asked, self.values)], 1)
        return torch.stack([keys, values], -1), value_of.gather(1, asked)
