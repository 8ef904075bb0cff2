"""Rows under generation: committed tokens, ragged cache, guidance and noise, advanced by any decoder."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from flambeau.generation.noise import Noise
from flambeau.generation.processors import Slots
from flambeau.generation.sampler import Sampler, check, guide
from flambeau.generation.statistics import Generation, Statistics
from flambeau.nn.kv_cache import KVCache


class CausalModel(Protocol):
    """What decoders need of a model: `flambeau.models.language.Decoder` has it, `huggingface.wrap` gives it.

    vocab: predicted tokens. input_vocab: accepted tokens. length: longest sequence, or None. A call appends tokens
    [rows, time] to every row of the cache and returns next-token logits of the last `keep` of them.
    """

    vocab: int
    input_vocab: int
    length: int | None

    def new_cache(self, batch: int, capacity: int) -> KVCache: ...

    def __call__(self, tokens: Tensor, *, positions: Tensor | None, cache: KVCache, keep: int) -> Tensor: ...


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance with its own prompt per row.

    scale: 1 is the conditional model alone. prompt, mask: as the conditional ones; left padding only.
    """

    scale: float
    prompt: Int[Tensor, "batch prompt"]
    mask: Bool[Tensor, "batch prompt"] | None = None


class DecodingState:
    """Generates `max_new_tokens` behind every prompt row; rows progress and finish independently.

    The cache always ends one token before the committed sequence: `propose` feeds what is pending (at first the whole
    prompt, later the last committed token) and the drafts in one forward, `commit` keeps what a decoder accepted.
    Finished rows leave the batch. Guided rows sit in a second block of the same cache.

    window: most tokens one `propose` may feed per row. rows: identities that key the noise (default 0..batch-1).
    Raises ValueError for empty or right-padded prompts, tokens outside the vocabulary, sequences longer than the
    model's, guidance of another batch size.
    """

    def __init__(
        self,
        model: CausalModel,
        prompt: Int[Tensor, "batch prompt"],
        max_new_tokens: int,
        sampler: Sampler,
        *,
        window: int = 1,
        prompt_mask: Bool[Tensor, "batch prompt"] | None = None,
        guidance: Guidance | None = None,
        eos_id: int | None = None,
        pad_id: int | None = None,
        generator: torch.Generator | None = None,
        rows: Int[Tensor, " batch"] | None = None,
    ):
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
        if eos_id is not None and not 0 <= eos_id < model.vocab:
            raise ValueError(f"eos_id must lie in the vocabulary 0..{model.vocab - 1}, got {eos_id}")
        starts = _check_prompt("prompt", prompt, prompt_mask, model)
        self.model, self.sampler, self.eos_id = model, sampler, eos_id
        self.prompt, self.max_new_tokens, self.starts = prompt, max_new_tokens, starts
        self.device, batch = prompt.device, prompt.shape[0]
        self.scale: float | None = None
        prompts, all_starts = prompt, starts
        if guidance is not None and guidance.scale != 1:
            if guidance.prompt.shape[0] != batch:
                raise ValueError(f"uncond_ids must have {batch} rows like the prompt, got {guidance.prompt.shape[0]}")
            self.scale = guidance.scale
            uncond_starts = _check_prompt("uncond_ids", guidance.prompt, guidance.mask, model)
            width = max(prompt.shape[1], guidance.prompt.shape[1])
            prompts = torch.cat([_pad_left(prompt, width), _pad_left(guidance.prompt.to(self.device), width)])
            all_starts = torch.cat([starts + width - prompt.shape[1], uncond_starts + width - guidance.prompt.shape[1]])
        self._pending = prompts.shape[1] - all_starts.cpu()
        # Packed to the left, so that a row's tokens sit at cache slots 0, 1, 2, ...
        columns = torch.arange(prompts.shape[1], device=self.device)
        packed = prompts.gather(1, (all_starts.to(self.device)[:, None] + columns) % prompts.shape[1])
        self._first: Tensor | None = packed.where(columns < self._pending.to(self.device)[:, None], 0)
        longest = int(self._pending.max()) + max_new_tokens - 1
        if model.length is not None and longest > model.length:
            raise ValueError(f"prompt and max_new_tokens need {longest} positions, the model has {model.length}")
        self.cache = model.new_cache(prompts.shape[0], prompts.shape[1] + max_new_tokens - 1 + window)
        self._limit = self._pending + max_new_tokens - 2  # last position that is ever fed

        self.noise = Noise(generator)
        self.row_keys = (torch.arange(batch) if rows is None else rows).to(self.device)
        self.step = 0
        self.active = torch.arange(batch, device=self.device)  # output rows still generating
        self.length = torch.zeros(batch, dtype=torch.long, device=self.device)  # committed, per active row
        self.most_remaining = max_new_tokens  # over the active rows
        self._fill = pad_id if pad_id is not None else eos_id if eos_id is not None else 0
        # A margin behind the end takes the slots of windows that reach over it.
        self.generated = torch.full((batch, max_new_tokens + window), self._fill, dtype=torch.long, device=self.device)
        self._last = prompt[:, -1:]
        self.statistics = Statistics.empty(batch, max_new_tokens)

    @property
    def remaining(self) -> Int[Tensor, " active"]:
        """Tokens still to commit, per active row."""
        return self.max_new_tokens - self.length

    def positions(self, slots: int) -> Int[Tensor, "active slots"]:
        """Generated position 0..max_new_tokens-1 that each slot of the next forward predicts, clamped past the end."""
        steps = torch.arange(slots, device=self.device)
        return (self.length[:, None] + steps).clamp(max=self.max_new_tokens - 1)

    def uniform(self, positions: Int[Tensor, "active time"], stream: int, *, step: Any = None) -> Tensor:
        """Noise of the active rows at this decoder step (or at `step`)."""
        return self.noise.uniform(self.row_keys[self.active], self.step if step is None else step, positions, stream)

    def propose(
        self, drafts: Int[Tensor, "active drafts"], counts: Int[Tensor, " active"]
    ) -> Float[Tensor, "active slots vocab"]:
        """One forward over pending tokens and drafts: warped probabilities of drafts + 1 slots.

        counts: how many of a row's drafts are real; slots behind them hold nothing of use.
        """
        began = time.perf_counter()
        drafted = drafts.shape[1]
        guided = drafts.repeat(2, 1) if self.scale is not None else drafts
        before = self.cache.lengths
        positions = None
        if self._first is not None:
            fed, keep = self._pack(guided)
        else:
            last = self._last.repeat(2, 1) if self.scale is not None else self._last
            fed, keep = torch.cat([last, guided], 1), drafted + 1
        if bool((before + fed.shape[1] - 1 > self._limit).any()):
            # Padding behind short rows must not ask for a position the model does not have.
            steps = before[:, None] + torch.arange(fed.shape[1])
            positions = torch.minimum(steps, self._limit[:, None]).to(self.device)
        logits = self.model(fed, positions=positions, cache=self.cache, keep=keep)
        if logits.shape[1:] != (keep, self.model.vocab):
            raise ValueError(f"model must return logits [.., {keep}, {self.model.vocab}], got {tuple(logits.shape)}")
        if self._first is not None and keep > drafted + 1:
            offset = self._pending.to(self.device) - 1 - (fed.shape[1] - keep)
            pick = offset[:, None] + torch.arange(drafted + 1, device=self.device)
            logits = logits.gather(1, pick[..., None].expand(-1, -1, logits.shape[-1]))
        self._committed_in_cache = before + self._pending
        self._first = None
        self._synchronise()
        self.statistics.seconds["model"] += time.perf_counter() - began

        if self.scale is not None:
            conditional, unconditional = logits.chunk(2)
            logits = guide(conditional, unconditional, self.scale)
        probabilities = self.sampler.probabilities(logits, self._slots(drafts) if self.sampler.processors else None)
        places = self.positions(drafted + 1)
        real = torch.arange(drafted + 1, device=self.device) <= counts[:, None]
        check(probabilities, places, real, self.active)
        return probabilities

    def commit(self, tokens: Int[Tensor, "active slots"], accepted: Int[Tensor, " active"]) -> Int[Tensor, " staying"]:
        """Append tokens[:, :accepted+1] to each row, up to its end or end-of-sequence; the first `accepted` are drafts.

        Returns which of the rows stay active, as indices; the others have left the batch and the cache.
        """
        slots = torch.arange(tokens.shape[1], device=self.device)
        count = accepted + 1
        ended = torch.zeros_like(accepted, dtype=torch.bool)
        if self.eos_id is not None:
            is_eos = (tokens == self.eos_id) & (slots < count[:, None])
            ended = is_eos.any(1)
            count = torch.where(ended, is_eos.long().argmax(1) + 1, count)
        # Slots behind the committed ones are filled; later commits or the margin of the buffer take them.
        written = torch.where(slots < count[:, None], tokens, self._fill)
        self.generated[self.active[:, None], self.length[:, None] + slots] = written
        length = self.length + count
        stays = (length < self.max_new_tokens) & ~ended

        # One transfer a forward: everything the host decides on.
        rows, start, kept, counted, staying = torch.stack(
            [self.active, self.length, accepted, count, stays.long()]
        ).cpu()
        self.statistics.record(rows, start, kept, counted)
        blocks = 1 if self.scale is None else 2
        self.cache.truncate(self._committed_in_cache + (counted - 1).repeat(blocks))
        self.length, self._last = length, tokens.gather(1, count[:, None] - 1)
        self._pending = torch.ones(self.cache.batch, dtype=torch.long)
        self.step += 1
        staying_rows = staying.nonzero()[:, 0]
        index = staying_rows.to(self.device)
        if staying_rows.numel():
            self.most_remaining = self.max_new_tokens - int((start + counted)[staying_rows].min())
            if staying_rows.numel() < rows.numel():
                both = (staying_rows + torch.arange(blocks)[:, None] * rows.numel()).flatten()
                self.cache.select(both)
                self._pending, self._limit = self._pending[both], self._limit[both]
        if staying_rows.numel() < rows.numel():
            self.active, self.length, self._last = self.active[index], self.length[index], self._last[index]
        return index

    def finish(self) -> Generation:
        """The prompts with what was generated, and the statistics."""
        self.statistics.kv_bytes = self.cache.allocated_bytes
        generated = self.generated[:, : self.max_new_tokens]
        return Generation(torch.cat([self.prompt, generated], 1), self.statistics)

    def _pack(self, drafts: Tensor) -> tuple[Tensor, int]:
        """Prompts of different lengths, each followed at once by its drafts; and how many logits cover all drafts."""
        prompts = self._first
        assert prompts is not None
        fed = torch.cat([prompts, torch.zeros_like(drafts)], 1)
        pending = self._pending.to(self.device)
        fed.scatter_(1, pending[:, None] + torch.arange(drafts.shape[1], device=self.device), drafts)
        width = int(self._pending.max()) + drafts.shape[1]
        return fed[:, :width], width - int(self._pending.min()) + 1

    def _slots(self, drafts: Tensor) -> Slots:
        prompt = self.prompt.shape[1]
        buffer = torch.cat([self.prompt[self.active], self.generated[self.active]], 1)
        targets = prompt + self.length[:, None] + torch.arange(drafts.shape[1], device=self.device)
        buffer.scatter_(1, targets, drafts)
        starts = self.starts.to(self.device)[self.active]
        positions = prompt + self.positions(drafts.shape[1] + 1)
        return Slots(buffer, prompt, starts, positions, self.active, self.prompt.shape[0])

    def _synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def _check_prompt(name: str, prompt: Tensor, mask: Tensor | None, model: CausalModel) -> Tensor:
    """Number of padding tokens in front of each row."""
    if prompt.ndim != 2 or prompt.dtype != torch.long or 0 in prompt.shape:
        raise ValueError(f"{name} must be int64 [batch, at least one token], got {prompt.dtype} {tuple(prompt.shape)}")
    if mask is None:
        mask = torch.ones_like(prompt, dtype=torch.bool)
    if mask.shape != prompt.shape:
        raise ValueError(f"mask of {name} must be {tuple(prompt.shape)}, got {tuple(mask.shape)}")
    mask = mask.bool()
    if bool((mask[:, :-1] & ~mask[:, 1:]).any()):
        raise ValueError(
            f"{name} must be padded on the left, row {int((mask[:, :-1] & ~mask[:, 1:]).any(1).nonzero()[0])} is not"
        )
    if not bool(mask[:, -1].all()):
        raise ValueError(f"{name} needs at least one token per row, row {int((~mask[:, -1]).nonzero()[0])} has none")
    real = prompt[mask.to(prompt.device)]
    if int(real.min()) < 0 or int(real.max()) >= model.input_vocab:
        raise ValueError(f"{name} tokens must lie in the vocabulary 0..{model.input_vocab - 1}, got {int(real.max())}")
    return (~mask).sum(1).cpu()


def _pad_left(prompt: Tensor, width: int) -> Tensor:
    return torch.cat([prompt.new_zeros(prompt.shape[0], width - prompt.shape[1]), prompt], 1)
