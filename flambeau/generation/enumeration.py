"""Exact joint distributions of tiny models, to test samplers against."""

from __future__ import annotations

import itertools

import torch
from jaxtyping import Float, Int
from torch import Tensor

from flambeau.generation.processors import Slots
from flambeau.generation.sampler import Sampler, guide
from flambeau.generation.state import CausalModel
from flambeau.nn.kv_cache import KVCache


class TableModel:
    """A language model that is a random table: one logit vector for every prefix of up to `length` tokens.

    The first token fed is a start token and counts for nothing but its number, which picks one of `starts` tables.
    It stores tokens in a real ragged cache, so that a decoder that truncates wrongly reads wrong prefixes.

    spread: standard deviation of the logits. Contexts are ignored when `independent`.
    """

    def __init__(
        self, vocab: int, length: int, *, seed: int, starts: int = 1, spread: float = 1.5, independent: bool = False
    ):
        generator = torch.Generator().manual_seed(seed)
        self.vocab, self.input_vocab, self.length = vocab, vocab + starts, length
        self.tables = [
            torch.randn(starts, 1 if independent else vocab**time, vocab, generator=generator, dtype=torch.float64)
            .mul_(spread)
            .expand(-1, vocab**time, -1)
            for time in range(length)
        ]

    def new_cache(self, batch: int, capacity: int) -> KVCache:
        return KVCache(1, batch, capacity)

    def __call__(
        self, tokens: Tensor, *, positions: Tensor | None = None, cache: KVCache, keep: int
    ) -> Float[Tensor, "batch kept vocab"]:
        append = cache.begin(tokens.shape[1])
        stored, _ = cache.write(0, tokens[:, None, :, None].double(), tokens[:, None, :, None].double(), append)
        history = stored[:, 0, :, 0].long()
        places = append.positions.expand(tokens.shape) if positions is None else positions
        cache.commit(append)
        start = history[:, 0] - self.vocab
        logits = []
        for slot in range(tokens.shape[1] - keep, tokens.shape[1]):
            place = places[:, slot]
            row = torch.empty(tokens.shape[0], self.vocab, dtype=torch.float64)
            for time in place.unique().tolist():
                at = place == time
                index = torch.zeros(int(at.sum()), dtype=torch.long)
                for column in range(1, min(time, self.length - 1) + 1):
                    index = index * self.vocab + history[at, column].clamp(0, self.vocab - 1)
                row[at] = self.tables[min(time, self.length - 1)][start[at], index]
            logits.append(row)
        return torch.stack(logits, 1)


def exact_joint(
    model: CausalModel,
    prompt: Int[Tensor, "1 prompt"],
    length: int,
    sampler: Sampler,
    *,
    cfg_scale: float = 1.0,
    uncond: Int[Tensor, "1 prompt"] | None = None,
) -> Float[Tensor, " sequences"]:
    """Probability of each of the vocab**length continuations, by feeding them all; see `sequence_index`."""
    sequences = torch.tensor(list(itertools.product(range(model.vocab), repeat=length)))
    count = sequences.shape[0]

    def logits_behind(start: Tensor) -> Tensor:
        fed = torch.cat([start.expand(count, -1), sequences[:, :-1]], 1)
        return model(fed, positions=None, cache=model.new_cache(count, fed.shape[1]), keep=length)

    logits = logits_behind(prompt)
    if uncond is not None:
        logits = guide(logits, logits_behind(uncond), cfg_scale)
    tokens = torch.cat([prompt.expand(count, -1), sequences], 1)
    positions = (prompt.shape[1] + torch.arange(length)).expand(count, -1)
    slots = Slots(tokens, prompt.shape[1], torch.zeros(count, dtype=torch.long), positions, torch.arange(count), count)
    return sampler.probabilities(logits, slots).gather(2, sequences[..., None])[..., 0].double().prod(1)


def sequence_index(tokens: Int[Tensor, "batch length"], vocab: int) -> Int[Tensor, " batch"]:
    """Place of each sequence in the order of `exact_joint`."""
    index = torch.zeros(tokens.shape[0], dtype=torch.long)
    for column in tokens.T:
        index = index * vocab + column
    return index


def chi_square(counts: Float[Tensor, " cells"], probabilities: Float[Tensor, " cells"], fewest: float = 5.0) -> float:
    """p-value of Pearson's test that counts come from the probabilities; cells expecting under `fewest` are pooled.

    Returns 0 when something impossible was counted.
    """
    if bool((counts[probabilities == 0] > 0).any()):
        return 0.0
    expected = probabilities.double() * counts.sum()
    small = expected < fewest
    observed = torch.cat([counts[~small].double(), counts[small].sum()[None].double()])
    expected = torch.cat([expected[~small], expected[small].sum()[None]])
    observed, expected = observed[expected > 0], expected[expected > 0]
    statistic = ((observed - expected) ** 2 / expected).sum()
    return float(torch.special.gammaincc(torch.tensor((len(expected) - 1) / 2, dtype=torch.float64), statistic / 2))
