"""Images as grids of discrete tokens, without a trained network."""

from __future__ import annotations

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from flambeau.nn.vector_quant import VectorQuant


class PatchTokenizer(nn.Module):
    """Each square patch of pixels is replaced by the number of its nearest code.

    codes: vocabulary size. patch: side in pixels. channels: of the images.
    Raises ValueError when an image's sides are not multiples of the patch or its channels differ.
    """

    def __init__(self, codes: int = 64, patch: int = 4, channels: int = 1):
        super().__init__()
        self.patch, self.channels = patch, channels
        self.quantizer = VectorQuant(codes, channels * patch * patch)

    def fit(
        self,
        images: Float[Tensor, "batch channels height width"],
        generator: torch.Generator | None = None,
        *,
        sample: int = 16384,
        passes: int = 2,
    ) -> None:
        """Learn the codebook: k-means on `sample` random patches, then moving averages over all patches."""
        patches = self._patches(images).flatten(0, 1)
        device = patches.device if generator is None else generator.device
        self.quantizer.start(
            patches[torch.randperm(len(patches), generator=generator, device=device)[:sample]], generator
        )
        self.quantizer.train()
        for _ in range(passes):
            for part in patches[torch.randperm(len(patches), generator=generator, device=device)].split(sample):
                self.quantizer(part, generator)
        self.quantizer.eval()

    def encode(self, images: Float[Tensor, "batch channels height width"]) -> Int[Tensor, "batch tokens"]:
        """Tokens in raster order."""
        was_training = self.quantizer.training
        self.quantizer.eval()
        indices = self.quantizer(self._patches(images)).indices
        self.quantizer.train(was_training)
        return indices

    def decode(
        self, tokens: Int[Tensor, "batch tokens"], grid: tuple[int, int]
    ) -> Float[Tensor, "batch channels height width"]:
        """Images of a token grid (height, width)."""
        if tokens.shape[1] != grid[0] * grid[1]:
            raise ValueError(f"grid {grid} holds {grid[0] * grid[1]} tokens, got {tokens.shape[1]}")
        return rearrange(
            self.quantizer.embed(tokens),
            "b (h w) (c p q) -> b c (h p) (w q)",
            h=grid[0],
            c=self.channels,
            p=self.patch,
            q=self.patch,
        )

    def _patches(self, images: Tensor) -> Tensor:
        if images.ndim != 4 or images.shape[1] != self.channels:
            raise ValueError(f"images must be [batch, {self.channels}, height, width], got {tuple(images.shape)}")
        if images.shape[2] % self.patch or images.shape[3] % self.patch:
            raise ValueError(f"image sides must be multiples of {self.patch}, got {tuple(images.shape[2:])}")
        return rearrange(images, "b c (h p) (w q) -> b (h w) (c p q)", p=self.patch, q=self.patch)
