"""Uniform numbers that are a function of what they are for, not of when they are drawn."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

DRAW, ACCEPT, INITIALISE, PREVIEW = range(4)


class Noise:
    """Uniforms in [0, 1) keyed by (row, step, position, stream): batching, chunking and caching cannot change them.

    A counter-based generator: SplitMix64 (Steele et al. 2014) finalisers over the key. A row's numbers depend on its
    identity, not on its place in the batch.

    generator: one number is drawn from it as the seed; None uses torch's global generator.
    """

    def __init__(self, generator: torch.Generator | None = None):
        device = "cpu" if generator is None else generator.device
        self.seed = int(torch.randint(2**62, (), generator=generator, device=device))

    def uniform(
        self,
        rows: Int[Tensor, " batch"],
        step: int | Int[Tensor, "batch time"],
        positions: Int[Tensor, "batch time"],
        stream: int = DRAW,
    ) -> Float[Tensor, "batch time"]:
        """Double-precision uniforms for these keys. step and position below 2**31; stream is DRAW, ACCEPT, ..."""
        row_key = _mix(rows * 0x632BE59BD9B4E019 + (self.seed + stream * 0x1E3779B97F4A7C15) % 2**63)
        mixed = _mix(_mix(row_key[:, None] + ((positions << 31) + step)))
        return _shift(mixed, 12).double() * 2.0**-52


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift(x, 30)) * -0x40A7B892E31B1A47
    x = (x ^ _shift(x, 27)) * -0x6B2FB644ECCEEE15
    return x ^ _shift(x, 31)
