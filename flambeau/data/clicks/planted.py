"""Clicks with known interactions: records whose click probability is a planted function of crosses of their fields."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from flambeau.data.seeding import derive_generator

TRIPLES = {"and": ((2, 3, 4), (6, 7, 8)), "xor": ((2, 3, 4),)}


@dataclass(frozen=True)
class PlantedClicks:
    """Records, labels and the truth behind them.

    Args:
        categories: of each field.
        labels: 0 or 1, drawn with ``sigmoid(logits)``.
        logits: the true ones.
        triples: fields that interact three at a time.
        pairs: all pairs of fields that occur together in a cross.
    """

    categories: Int64[Tensor, "rows fields"]
    labels: Float[Tensor, " rows"]
    logits: Float[Tensor, " rows"]
    triples: tuple[tuple[int, int, int], ...]
    pairs: frozenset[tuple[int, int]]

    def columns(self, rows: slice = slice(None)) -> dict[str, Tensor]:
        """Columns ``field_0``, ``field_1``, ... of some rows."""
        return {f"field_{position}": column[rows] for position, column in enumerate(self.categories.T)}


def planted_clicks(
    rows: int, *, crosses: Literal["and", "xor"] = "and", fields: int = 10, categories: int = 20, seed: int = 0
) -> PlantedClicks:
    """Categorical records with crosses of second and third order.

    Every category c of a field has a latent z ~ N(0, 1); ``q = [z > 0]``, ``s = sign(z)``. The logit is
    ``2.5 q0 q1 + 4 q2 q3 q4 - 3 q6 (1 - q7) q8 + 0.3 z5 - 0.8`` for ``"and"`` and
    ``1.5 s0 s1 + 1.5 s2 s3 s4 + 0.3 z5`` for ``"xor"``, whose crosses have no effect of lower order.

    Raises:
        ValueError: fewer than 9 fields or 2 categories, or unknown crosses.
    """
    if fields < 9 or categories < 2 or crosses not in TRIPLES:
        raise ValueError(
            f"need at least 9 fields, 2 categories and crosses 'and' or 'xor', got {fields}, {categories}, {crosses!r}"
        )
    generator = derive_generator(seed, "planted clicks")
    latent = torch.randn(fields, categories, generator=generator)
    chosen = torch.randint(categories, (rows, fields), generator=generator)
    z = latent.gather(1, chosen.T)
    q, s = (z > 0).float(), z.sign()
    if crosses == "and":
        logits = 2.5 * q[0] * q[1] + 4 * q[2] * q[3] * q[4] - 3 * q[6] * (1 - q[7]) * q[8] + 0.3 * z[5] - 0.8
    else:
        logits = 1.5 * s[0] * s[1] + 1.5 * s[2] * s[3] * s[4] + 0.3 * z[5]
    labels = torch.bernoulli(logits.sigmoid(), generator=generator)
    triples = TRIPLES[crosses]
    pairs = frozenset({(0, 1), *(pair for triple in triples for pair in combinations(triple, 2))})
    return PlantedClicks(chosen, labels, logits, triples, pairs)
