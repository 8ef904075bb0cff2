"""Which way up an image is: the four-way rotation task."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from flambeau.data.augment import rotate_quarter

TURNS = 4


def random_turns(
    images: Float[Tensor, "batch channels height width"],
    not_square: Literal["raise", "pad", "half"] = "raise",
    generator: torch.Generator | None = None,
) -> tuple[Float[Tensor, "batch channels side_y side_x"], Int64[Tensor, " batch"]]:
    """Images turned by a random number of quarters, which is the label to predict (Gidaris et al. 2018, 1803.07728).

    not_square: what is done with images that are not square, whose shape a quarter turn would change. "pad" puts zeros
    around them until they are square; "half" turns them by 0 or 2 quarters only. generator: on the CPU; None draws
    from the global one.

    Raises:
        ValueError: images that are not square with "raise", or another word for it.
    """
    if not_square not in ("raise", "pad", "half"):
        raise ValueError(f"not_square must be 'raise', 'pad' or 'half', got {not_square!r}")
    height, width = images.shape[-2:]
    if height != width and not_square == "raise":
        raise ValueError(f"rotation needs square images, got {height} x {width}; pass not_square='pad' or 'half'")
    if height != width and not_square == "half":
        turns = 2 * torch.randint(2, (len(images),), generator=generator).to(images.device)
        return torch.where(turns.view(-1, 1, 1, 1) == 2, images.flip(2, 3), images), turns
    if height != width:
        side = max(height, width)
        above, before = (side - height) // 2, (side - width) // 2
        images = F.pad(images, (before, side - width - before, above, side - height - above))
    turns = torch.randint(TURNS, (len(images),), generator=generator).to(images.device)
    return rotate_quarter(images, turns), turns
