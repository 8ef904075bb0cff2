"""Batches for masked-token prediction and sentence order: single tokens masked, or whole words."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from flambeau.data.seeding import derive_generator

IGNORED = -100


def mask_tokens(
    tokens: Int64[Tensor, "batch time"],
    *,
    mask_token: int,
    vocab: int,
    generator: torch.Generator,
    rate: float = 0.15,
    maskable: Bool[Tensor, "batch time"] | None = None,
) -> tuple[Int64[Tensor, "batch time"], Int64[Tensor, "batch time"]]:
    """Inputs and targets of masked-token prediction (Devlin et al. 2019, arXiv 1810.04805, section 3.1).

    A share `rate` of the tokens is to be predicted. Of those, 80 % become `mask_token`, 10 % a random token below
    `vocab`, and 10 % stay as they are. Targets are -100 elsewhere. At least one token of the batch is predicted.

    maskable: False for tokens that are never chosen (separators, padding).
    Raises ValueError for a rate outside (0, 1), or a batch in which no token may be masked.
    """
    if not 0 < rate < 1:
        raise ValueError(f"rate must lie in (0, 1), got {rate}")
    allowed = torch.ones_like(tokens, dtype=torch.bool) if maskable is None else maskable
    if not allowed.any():
        raise ValueError("maskable must be True for some token")
    chosen = (torch.rand(tokens.shape, generator=generator) < rate) & allowed
    if not chosen.any():
        chosen.view(-1)[allowed.view(-1).nonzero()[0]] = True
    targets = tokens.masked_fill(~chosen, IGNORED)
    fate = torch.rand(tokens.shape, generator=generator)
    random = torch.randint(0, vocab, tokens.shape, generator=generator)
    masked = torch.where(chosen & (fate < 0.8), mask_token, tokens)
    return torch.where(chosen & (fate >= 0.9), random, masked), targets


@dataclass(frozen=True)
class MaskedLanguage:
    """Batches of two neighbouring pieces of text, some tokens masked, the pieces swapped in half of the cases.

    Called with (step, generator), of which only the seed is read, so that a batch depends on seed and step only.
    A batch has ``tokens``, ``targets`` (-100 where nothing is predicted), ``segments`` (0 and 1 for the pieces) and
    ``order`` (1 if the pieces are swapped), the sentence-order task of ALBERT (Lan et al. 2020, arXiv 1909.11942).

    stream: one long sequence of token ids below `vocab`. length: tokens of a row. rate: share that is predicted.
    first_token: what every row begins with ([CLS]), by default `vocab`. mask_token: by default ``vocab + 1``; a model
    then needs ``vocab + 2`` tokens.
    Raises ValueError for sizes out of range, or a text shorter than a row.
    """

    stream: Int64[Tensor, " tokens"]
    length: int
    batch_size: int
    vocab: int = 256
    rate: float = 0.15
    first_token: int | None = None
    mask_token: int | None = None

    def __post_init__(self) -> None:
        if self.length < 3 or self.batch_size < 1:
            raise ValueError(
                f"length must be at least 3 and batch_size at least 1, got {self.length} and {self.batch_size}"
            )
        if self.stream.ndim != 1 or len(self.stream) < self.length:
            raise ValueError(f"stream must be at least {self.length} tokens, got shape {list(self.stream.shape)}")
        if int(self.stream.min()) < 0 or int(self.stream.max()) >= self.vocab:
            raise ValueError(
                f"stream must have tokens in [0, {self.vocab}), got "
                f"[{int(self.stream.min())}, {int(self.stream.max())}]"
            )

    def __call__(self, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        """The batch of a step."""
        own = derive_generator(generator.initial_seed(), "masked language", step)
        body = self.length - 1
        starts = torch.randint(0, len(self.stream) - body + 1, (self.batch_size,), generator=own)
        text = self.stream[starts[:, None] + torch.arange(body)]
        order = torch.randint(0, 2, (self.batch_size,), generator=own)
        second = (body + 1) // 2
        # Swapped, the latter half comes first; both kinds have their border at the same place.
        swapped = torch.cat((text[:, body - second :], text[:, : body - second]), dim=1)
        text = torch.where(order[:, None].bool(), swapped, text)
        first = self.vocab if self.first_token is None else self.first_token
        mask_token = self.vocab + 1 if self.mask_token is None else self.mask_token
        tokens = torch.cat((torch.full((self.batch_size, 1), first), text), dim=1)
        maskable = (torch.arange(self.length) > 0).expand_as(tokens)
        inputs, targets = mask_tokens(
            tokens, mask_token=mask_token, vocab=self.vocab, generator=own, rate=self.rate, maskable=maskable
        )
        segments = (torch.arange(self.length) > second).long().expand(self.batch_size, -1)
        return {"tokens": inputs, "targets": targets, "segments": segments, "order": order}


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
        drawn = derive_generator(generator.initial_seed(), "masked pairs", step)
        rows = [self._row(drawn) for _ in range(self.batch_size)]
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}

    def _row(self, drawn: torch.Generator) -> dict[str, Tensor]:
        room = self.length - 3
        start = int(torch.randint(len(self.tokens) - room + 1, (), generator=drawn))
        cut = int(torch.randint(1, room, (), generator=drawn))
        swapped = int(torch.randint(2, (), generator=drawn))
        text, begins = self.tokens[start : start + room], self.begins[start : start + room]
        hidden = self._hidden(begins, drawn)
        targets = torch.where(hidden, text, IGNORED)
        kind = torch.rand(room, generator=drawn)
        other = torch.randint(self.vocab, (room,), generator=drawn)
        shown = torch.where(hidden & (kind < 0.8), self.vocab + 2, text)
        shown = torch.where(hidden & (kind >= 0.8) & (kind < 0.9), other, shown)
        mark, none = torch.tensor([self.vocab, self.vocab + 1]), torch.tensor([IGNORED])
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
