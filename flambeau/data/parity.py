"""Running parity of random bits: the smallest task that needs a state, solvable by any recurrent cell."""

import torch
from jaxtyping import Int
from torch import Tensor


def parity(
    batch: int, time: int, generator: torch.Generator
) -> tuple[Int[Tensor, "batch time"], Int[Tensor, "batch time"]]:
    """Random bits, and at every step whether an odd number of ones has been seen (Merrill and Sabharwal, 2023)."""
    if batch < 1 or time < 1:
        raise ValueError(f"batch is {batch} and time is {time}; expected at least 1")
    bits = torch.randint(0, 2, (batch, time), generator=generator)
    return bits, bits.cumsum(1) % 2
