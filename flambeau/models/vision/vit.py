"""Vision transformer."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from flambeau.nn.attention.core import AttentionCore


class ImageAttention(nn.Module):
    """Multi-head self-attention with timm's parameter names and layout (queries, keys, values of all heads in turn)."""

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.core = AttentionCore(causal=False, dropout=dropout)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens width"]:
        queries, keys, values = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(self.core(queries, keys, values).transpose(1, 2).flatten(2))


class ImageMLP(nn.Module):
    """Linear, GELU, Linear."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens width"]:
        return self.fc2(F.gelu(self.fc1(x)))


class DropPath(nn.Module):
    """Drop a residual branch for whole samples (Huang et al. 2016, arXiv 1603.09382); the rest is scaled up."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, x: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens width"]:
        if not self.training or self.rate == 0:
            return x
        kept = torch.rand(x.shape[0], 1, 1, device=x.device) >= self.rate
        return x * kept / (1 - self.rate)


class ViTBlock(nn.Module):
    """Pre-norm attention and MLP."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float, drop_path: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = ImageAttention(width, heads, dropout)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = ImageMLP(width, hidden)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens width"]:
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class PatchEmbed(nn.Module):
    """Non-overlapping patches, each projected to a token."""

    def __init__(self, patch: tuple[int, int], in_channels: int, width: int):
        super().__init__()
        self.proj = nn.Conv2d(in_channels, width, patch, patch)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch tokens embedding"]:
        return self.proj(x).flatten(2).transpose(1, 2)


class ViT(nn.Module):
    """Vision transformer (Dosovitskiy et al. 2021, arXiv 2010.11929) with the parameter names of timm's.

    image_size: (height, width) in pixels of the native position grid; other sizes interpolate it. patch: side of a
    patch, or (height, width). class_tokens: learned tokens before the patches, 0 for none. drop_path: rate of the last
    block, rising linearly from 0. classes: outputs of a linear head on the class tokens' mean (the patches' without
    any); None for none. Raises ValueError when sizes do not divide.
    """

    def __init__(
        self,
        image_size: tuple[int, int] = (224, 224),
        patch: int | tuple[int, int] = 16,
        width: int = 384,
        depth: int = 12,
        heads: int = 6,
        *,
        in_channels: int = 3,
        hidden: int | None = None,
        class_tokens: int = 1,
        classes: int | None = None,
        dropout: float = 0.0,
        drop_path: float = 0.0,
    ):
        super().__init__()
        self.patch: tuple[int, int] = (patch, patch) if isinstance(patch, int) else (patch[0], patch[1])
        self._check(image_size)
        if width % heads:
            raise ValueError(f"width must be divisible by heads, got {width} and {heads}")
        self.grid = (image_size[0] // self.patch[0], image_size[1] // self.patch[1])
        self.width, self.class_tokens, self.in_channels = width, class_tokens, in_channels
        self.patch_embed = PatchEmbed(self.patch, in_channels, width)
        self.cls_token = nn.Parameter(torch.zeros(1, class_tokens, width)) if class_tokens else None
        self.pos_embed = nn.Parameter(torch.zeros(1, class_tokens + math.prod(self.grid), width))
        self.pos_drop = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            ViTBlock(width, heads, hidden or 4 * width, dropout, drop_path * number / max(depth - 1, 1))
            for number in range(depth)
        )
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Identity() if classes is None else nn.Linear(width, classes)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        if self.cls_token is not None:
            nn.init.trunc_normal_(self.cls_token, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def positions(self, grid: tuple[int, int]) -> Float[Tensor, "1 tokens width"]:
        """Position embedding for a grid of (rows, columns) patches: bicubic interpolation of the native one."""
        if grid == self.grid:
            return self.pos_embed
        fixed, native = self.pos_embed.split([self.class_tokens, math.prod(self.grid)], 1)
        native = native.unflatten(1, self.grid).permute(0, 3, 1, 2)
        resized = F.interpolate(native, grid, mode="bicubic", align_corners=False)
        return torch.cat([fixed, resized.flatten(2).transpose(1, 2)], 1)

    def embed(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch tokens embedding"]:
        """Class tokens and patches with their positions, before the first block.

        Raises:
            ValueError: another number of channels, or an image that the patches do not divide.
        """
        if x.ndim != 4 or x.shape[1] != self.in_channels:
            raise ValueError(f"images must be [batch, {self.in_channels}, height, width], got {list(x.shape)}")
        self._check((x.shape[2], x.shape[3]))
        tokens = self.patch_embed(x)
        if self.cls_token is not None:
            tokens = torch.cat([self.cls_token.expand(len(x), -1, -1), tokens], 1)
        return self.pos_drop(tokens + self.positions((x.shape[2] // self.patch[0], x.shape[3] // self.patch[1])))

    def tokens(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch tokens embedding"]:
        """Normalised output tokens: the class tokens, then the patches in raster order."""
        y = self.embed(x)
        for block in self.blocks:
            y = block(y)
        return self.norm(y)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch out"]:
        y = self.tokens(x)
        return self.head(y[:, : self.class_tokens].mean(1) if self.class_tokens else y.mean(1))

    def _check(self, size: tuple[int, int]) -> None:
        if size[0] % self.patch[0] or size[1] % self.patch[1]:
            raise ValueError(f"an image of {size[0]} x {size[1]} pixels is not divisible into patches of {self.patch}")
