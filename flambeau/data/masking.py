"""Training data of BERT: pairs of text segments with whole words masked."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int64
from torch import Tensor


@dataclass(frozen=True)
class MaskedPairs:
    """Batches for masked-token prediction and sentence order, a pure function of the step.

    A row is ``[start] A [end] B [end]`` where A and B follow one another in the text; in half of the rows they are
    swapped (order 1). Of the words, `share` are hidden, in runs of one to `longest_run` (whole-word n-gram masking,
    as in Megatron-LM's BERT; Shoeybi et al. 2019, arXiv 1909.08053, section 4.2): four fifths of their tokens become
    the mask token, a tenth another token, a tenth stay.

    Args:
        tokens: one long text.
        begins: True where a word begins; a token that begins none belongs to the word before it.
        length: tokens a row.
        batch_size: rows.
        vocab: tokens of the text; `vocab`, `vocab + 1` and `vocab + 2` are start, end and mask.
        share: of the words that are hidden.

    Raises:
        ValueError: a text shorter than a row, or an argument out of range.
    """

    tokens: Int64[Tensor, " tokens"]
    begins: Bool[Tensor, " tokens"]
    length: int
    batch_size: int
    vocab: int
    share: float = 0.15
    longest_run: int = 3

    def __post_init__(self) -> None:
        if self.tokens.shape != self.begins.shape:
            raise ValueError(f"begins must have shape {list(self.tokens.shape)}, got {list(self.begins.shape)}")
        if self.length < 8 or len(self.tokens) < self.length:
            raise ValueError(f"length must lie in 8..{len(self.tokens)}, got {self.length}")
        if not 0 < self.share < 1:
            raise ValueError(f"share must lie in (0, 1), got {self.share}")
        if self.batch_size < 1 or self.longest_run < 1:
            raise ValueError(
                f"batch_size and longest_run must be at least 1, got {self.batch_size} and {self.longest_run}"
            )

    def __call__(self, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        """``tokens``, ``targets`` (-100 where nothing was hidden), ``segments`` [rows, length]; ``order`` [rows]."""
        drawn = torch.Generator().manual_seed((generator.initial_seed() * 1_000_003 + step) % 2**63)
        rows = [self._row(drawn) for _ in range(self.batch_size)]
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}

    def _row(self, drawn: torch.Generator) -> dict[str, Tensor]:
        room = self.length - 3
        start = int(torch.randint(len(self.tokens) - room + 1, (), generator=drawn))
        cut = int(torch.randint(1, room, (), generator=drawn))
        swapped = int(torch.randint(2, (), generator=drawn))
        text, begins = self.tokens[start : start + room], self.begins[start : start + room]
        hidden = self._hidden(begins, drawn)
        targets = torch.where(hidden, text, -100)
        kind = torch.rand(room, generator=drawn)
        other = torch.randint(self.vocab, (room,), generator=drawn)
        shown = torch.where(hidden & (kind < 0.8), self.vocab + 2, text)
        shown = torch.where(hidden & (kind >= 0.8) & (kind < 0.9), other, shown)
        mark, none = torch.tensor([self.vocab, self.vocab + 1]), torch.tensor([-100])
        parts = [(shown[:cut], targets[:cut]), (shown[cut:], targets[cut:])]
        (a, a_targets), (b, b_targets) = parts[::-1] if swapped else parts
        return {
            "tokens": torch.cat([mark[:1], a, mark[1:], b, mark[1:]]),
            "targets": torch.cat([none, a_targets, none, b_targets, none]),
            "segments": torch.cat([torch.zeros(len(a) + 2), torch.ones(len(b) + 1)]).long(),
            "order": torch.tensor(swapped),
        }

    def _hidden(self, begins: Tensor, drawn: torch.Generator) -> Tensor:
        word = begins.long().cumsum(0)
        words = int(word[-1]) + 1
        hidden = torch.zeros(words, dtype=torch.bool)
        wanted = max(1, round(self.share * words))
        while int(hidden.sum()) < wanted:
            first = int(torch.randint(words, (), generator=drawn))
            run = min(int(torch.randint(1, self.longest_run + 1, (), generator=drawn)), wanted - int(hidden.sum()))
            hidden[first : first + run] = True
        return hidden[word]
