"""Vector quantisation with a codebook kept by moving averages."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from flambeau.nn.distances import nearest
from flambeau.nn.kmeans import kmeans


@dataclass(frozen=True)
class Quantized:
    """vectors: nearest codes, differentiable as the identity. indices: their numbers. losses: "commit", unweighted
    mean squared distance of inputs to their (fixed) codes. used: share of the codebook that occurs."""

    vectors: Float[Tensor, "*batch dim"]
    indices: Int[Tensor, " *batch"]
    losses: dict[str, Tensor]
    used: float


class VectorQuant(nn.Module):
    """Nearest-code quantiser; codes follow exponential moving averages of their inputs (van den Oord et al. 2017,
    arXiv 1711.00937, appendix A.1), with k-means start and revival of dead codes.

    In training mode every forward moves the codebook. A code whose average count falls below `dead_below` is placed on
    a random input of the batch, and its averages start anew from there.

    codes, dim: size of the codebook. decay: of the averages. dead_below: average inputs per forward.
    """

    def __init__(self, codes: int, dim: int, *, decay: float = 0.99, dead_below: float = 0.1):
        super().__init__()
        if codes < 1 or dim < 1:
            raise ValueError(f"codes and dim must be at least 1, got {codes} and {dim}")
        if not 0 <= decay < 1:
            raise ValueError(f"decay must lie in [0, 1), got {decay}")
        self.decay, self.dead_below = decay, dead_below
        self.register_buffer("codebook", torch.randn(codes, dim))
        self.register_buffer("counts", torch.ones(codes))
        self.register_buffer("sums", self.codebook.clone())

    @torch.no_grad()
    def start(self, vectors: Float[Tensor, "count dim"], generator: torch.Generator | None = None) -> None:
        """Put the codes on k-means centres of the vectors; raises ValueError when there are fewer than codes."""
        codes = self.codebook.shape[0]
        if vectors.shape[0] < codes:
            raise ValueError(f"{codes} codes need as many vectors, got {vectors.shape[0]}")
        self.codebook.copy_(kmeans(vectors, codes, generator=generator))
        owners = nearest(vectors, self.codebook, matmul=True)[1][:, 0]
        self.counts.copy_(torch.bincount(owners, minlength=codes))
        self.sums.copy_(self.codebook * self.counts[:, None])

    def embed(self, indices: Int[Tensor, " *batch"]) -> Float[Tensor, "*batch dim"]:
        """The codes of these numbers."""
        return self.codebook[indices]

    def forward(self, vectors: Float[Tensor, "*batch dim"], generator: torch.Generator | None = None) -> Quantized:
        """Quantise; `generator` chooses the inputs that revive dead codes."""
        flat = vectors.reshape(-1, vectors.shape[-1])
        indices = nearest(flat.detach(), self.codebook, matmul=True)[1][:, 0]
        codes = self.codebook[indices]
        if self.training:
            self._follow(flat.detach(), indices, generator)
        commit = (flat - codes).pow(2).mean()
        straight = flat + (codes - flat).detach()
        used = float(indices.unique().numel()) / self.codebook.shape[0]
        return Quantized(straight.view_as(vectors), indices.view(vectors.shape[:-1]), {"commit": commit}, used)

    @torch.no_grad()
    def _follow(self, flat: Tensor, indices: Tensor, generator: torch.Generator | None) -> None:
        codes = self.codebook.shape[0]
        counts = torch.bincount(indices, minlength=codes).to(flat.dtype)
        sums = torch.zeros_like(self.sums).index_add_(0, indices, flat)
        self.counts.lerp_(counts, 1 - self.decay)
        self.sums.lerp_(sums, 1 - self.decay)
        dead = (self.counts < self.dead_below).nonzero()[:, 0]
        if dead.numel():
            device = flat.device if generator is None else generator.device
            picks = torch.randint(flat.shape[0], (dead.numel(),), generator=generator, device=device)
            self.counts[dead] = 1.0
            self.sums[dead] = flat[picks.to(flat.device)]
        self.codebook.copy_(self.sums / self.counts[:, None])
