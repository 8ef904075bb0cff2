"""The newest feature vectors of past batches."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class FeatureQueue(nn.Module):
    """First in, first out: `size` normalised vectors, the oldest replaced first (He et al. 2020, arXiv 1911.05722).

    It begins with random directions, as MoCo's does. Vectors and position are buffers, so that checkpoints hold them.
    `vectors` [size, dim] are in the order of their places, not of their age.

    Raises:
        ValueError: `size` or `dim` below 1.
    """

    vectors: Tensor
    position: Tensor

    def __init__(self, size: int, dim: int):
        super().__init__()
        if size < 1 or dim < 1:
            raise ValueError(f"size and dim must be at least 1, got {size} and {dim}")
        self.register_buffer("vectors", F.normalize(torch.randn(size, dim), dim=1))
        self.register_buffer("position", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def push(self, vectors: Float[Tensor, "batch dim"]) -> None:
        """Take in a batch in place of the oldest.

        Raises:
            ValueError: vectors of another size, or more of them than the queue holds.
        """
        size, dim = self.vectors.shape
        if vectors.ndim != 2 or vectors.shape[1] != dim:
            raise ValueError(f"vectors must be [batch, {dim}], got {list(vectors.shape)}")
        if len(vectors) > size:
            raise ValueError(f"a queue of {size} cannot take {len(vectors)} vectors at once; make it larger")
        places = (self.position + torch.arange(len(vectors), device=vectors.device)) % size
        self.vectors[places] = F.normalize(vectors, dim=1).to(self.vectors.dtype)
        self.position.copy_((self.position + len(vectors)) % size)
