"""Independent random streams from one seed."""

from __future__ import annotations

import hashlib

import torch


def derive_seed(*parts: int | str) -> int:
    """A seed that depends on every part and on their order, for example ``derive_seed(seed, "epoch", 3)``.

    Streams made from different parts are independent for all practical purposes, which sums such as ``seed + epoch``
    are not: seed 0 in epoch 1 would repeat seed 1 in epoch 0.

    Returns:
        An integer in [0, 2^63).
    """
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def derive_generator(*parts: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator seeded with :func:`derive_seed`."""
    return torch.Generator(device).manual_seed(derive_seed(*parts))
