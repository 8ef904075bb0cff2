"""Images as sequences of subpixels, one after the other."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from flambeau.models.language.routing_blocks import RoutingStack, initialise


class RoutingImageModel(nn.Module):
    """Autoregressive model of images in raster order, the channels of a pixel one after the other, as for ImageNet-64
    and CIFAR-10 in Roy et al. 2020 (arXiv 2003.05997, section 5.2). Positions are learned per row, column and channel.

    Args:
        size: (height, width) of the images.
        channels: per pixel. levels: of a channel, 256 for 8 bits.
        dim, ...: see `RoutingStack`.

    Raises:
        ValueError: a size below 1, or sizes that the stack refuses.
    """

    def __init__(self, size: tuple[int, int], channels: int = 3, levels: int = 256, dim: int = 512, **stack: Any):
        super().__init__()
        if min(*size, channels) < 1 or levels < 2:
            raise ValueError(f"size and channels must be at least 1 and levels 2, got {size}, {channels}, {levels}")
        self.shape, self.levels = (channels, *size), levels
        self.embedding = nn.Embedding(channels * levels, dim)  # a channel's level 7 is not another channel's
        self.start = nn.Parameter(torch.zeros(dim))
        self.row, self.column, self.channel = (
            nn.Embedding(size[0], dim),
            nn.Embedding(size[1], dim),
            nn.Embedding(channels, dim),
        )
        self.stack = RoutingStack(dim, **stack)
        self.head = nn.Linear(dim, levels)
        self.apply(initialise)

    def forward(self, images: Int[Tensor, "batch channels height width"]) -> Float[Tensor, "batch subpixels levels"]:
        """Logits of every subpixel given those before it, in the order row, column, channel.

        Raises:
            ValueError: images of another shape or with levels out of range.
        """
        tokens = self._tokens(images)
        return self.head(self.stack(self._inputs(tokens[:, :-1]) + self._positions()))

    def bits_per_dim(self, images: Int[Tensor, "batch channels height width"]) -> Float[Tensor, " batch"]:
        """Negative log-likelihood per subpixel in bits, the figure published for image models."""
        logits = self(images)
        nll = F.cross_entropy(logits.transpose(1, 2), self._tokens(images), reduction="none")
        return nll.mean(1) / math.log(2)

    @torch.no_grad()
    def sample(
        self, count: int, *, temperature: float = 1.0, generator: torch.Generator | None = None
    ) -> Int[Tensor, "count channels height width"]:
        """Draw images subpixel by subpixel with the caches of all layers."""
        channels, height, width = self.shape
        cache, positions = self.stack.new_cache(count), self._positions()
        tokens = torch.zeros(count, 0, dtype=torch.long, device=positions.device)
        for step in range(channels * height * width):
            x = self._inputs(tokens)[:, -1:] + positions[step]
            probabilities = (self.head(self.stack(x, cache=cache))[:, 0].float() / temperature).softmax(-1)
            tokens = torch.cat([tokens, torch.multinomial(probabilities, 1, generator=generator)], 1)
        return tokens.view(count, height, width, channels).permute(0, 3, 1, 2)

    def _tokens(self, images: Tensor) -> Tensor:
        if images.shape[1:] != self.shape or images.is_floating_point():
            raise ValueError(f"images must be integers [batch, {self.shape}], got {images.dtype} {list(images.shape)}")
        if int(images.min()) < 0 or int(images.max()) >= self.levels:
            raise ValueError(f"images must lie in 0..{self.levels - 1}, got {int(images.min())}..{int(images.max())}")
        return images.permute(0, 2, 3, 1).flatten(1).long()

    def _inputs(self, tokens: Tensor) -> Tensor:
        """The start and the embedded tokens behind it."""
        channel = torch.arange(tokens.shape[1], device=tokens.device) % self.shape[0]
        embedded = self.embedding(tokens + channel * self.levels)
        return torch.cat([self.start.expand(tokens.shape[0], 1, -1), embedded], 1)

    def _positions(self) -> Float[Tensor, "subpixels dim"]:
        sum_ = self.row.weight[:, None, None] + self.column.weight[None, :, None] + self.channel.weight[None, None]
        return sum_.flatten(0, 2)
