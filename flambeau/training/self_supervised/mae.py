"""MAE: a vision transformer sees a quarter of the patches, and a small one draws the rest."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from flambeau.models.vision.vit import ViT, ViTBlock
from flambeau.objectives.masking import random_cells
from flambeau.objectives.reconstruction import masked_error, normalise_patches, patchify, unpatchify


class MAE(nn.Module):
    """Masked autoencoder (He et al. 2022, arXiv 2111.06377).

    Args:
        vit: the encoder; with class tokens, it keeps them.
        mask_ratio: share of the patches that the encoder does not see.
        width, depth, heads: of the decoder.
        normalise: predict each patch with mean 0 and variance 1.

    Raises:
        ValueError: a mask ratio outside (0, 1), or a width that the heads do not divide.
    """

    def __init__(
        self,
        vit: ViT,
        mask_ratio: float = 0.75,
        *,
        width: int = 512,
        depth: int = 8,
        heads: int = 16,
        normalise: bool = True,
    ):
        super().__init__()
        if not 0 < mask_ratio < 1:
            raise ValueError(f"mask_ratio must lie in (0, 1), got {mask_ratio}")
        if width % heads:
            raise ValueError(f"width must be divisible by heads, got {width} and {heads}")
        self.backbone, self.mask_ratio, self.normalise = vit, mask_ratio, normalise
        self.to_decoder = nn.Linear(vit.width, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.zeros(1, math.prod(vit.grid), width))
        self.decoder = nn.ModuleList(ViTBlock(width, heads, 4 * width, 0.0, 0.0) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.pixels = nn.Linear(width, math.prod(vit.patch) * vit.in_channels)
        for parameter in (self.mask_token, self.positions):
            nn.init.trunc_normal_(parameter, std=0.02)

    def forward(
        self,
        views: Float[Tensor, "batch channels height width"] | Sequence[Float[Tensor, "batch channels height width"]],
        visible: Bool[Tensor, "batch rows columns"] | None = None,
    ) -> dict[str, Tensor]:
        """ "loss": squared error of the hidden patches; "reconstruction": all patches [batch, patches, values].

        views: images of the encoder's native size, or a list of batches of them, which are joined. visible: True for
        patches the encoder sees, equally many an image; None draws them from the global generator.

        Raises:
            ValueError: images of another size, or a number of visible patches that differs or is none or all.
        """
        x = views if isinstance(views, Tensor) else torch.cat(list(views))
        vit = self.backbone
        tokens = vit.embed(x)
        classes, patches = tokens[:, : vit.class_tokens], tokens[:, vit.class_tokens :]
        count = patches.shape[1]
        if count != math.prod(vit.grid):
            raise ValueError(f"images must have {vit.grid} patches, got {list(x.shape)}")
        if visible is None:
            keep = max(1, min(count - 1, round(count * (1 - self.mask_ratio))))
            visible = random_cells(len(x), vit.grid, keep)
        seen = visible.to(x.device).flatten(1)
        kept = int(seen[0].sum())
        if not 0 < kept < count or not (seen.sum(1) == kept).all():
            raise ValueError("visible must be True for equally many patches of each image, neither none nor all")
        rows = seen.nonzero()[:, 1].view(len(x), kept, 1)  # in raster order
        hidden = torch.cat([classes, patches.gather(1, rows.expand(-1, -1, vit.width))], 1)
        for block in vit.blocks:
            hidden = block(hidden)
        hidden = self.to_decoder(vit.norm(hidden))
        classes, known = hidden[:, : vit.class_tokens], hidden[:, vit.class_tokens :]
        every = self.mask_token.to(known.dtype).expand(len(x), count, -1)
        every = every.scatter(1, rows.expand(-1, -1, known.shape[-1]), known) + self.positions
        decoded = torch.cat([classes, every], 1)
        for block in self.decoder:
            decoded = block(decoded)
        predicted = self.pixels(self.norm(decoded[:, vit.class_tokens :]))
        target = patchify(x, vit.patch)
        if self.normalise:
            target = normalise_patches(target)
        loss = masked_error(predicted, target, ~seen[:, :, None], "l2")
        return {"loss": loss, "reconstruction": predicted.detach()}

    @torch.no_grad()
    def reconstruct(
        self, x: Float[Tensor, "batch channels height width"], visible: Bool[Tensor, "batch rows columns"]
    ) -> Float[Tensor, "batch channels height width"]:
        """Images with their hidden patches as predicted.

        With a normalised target, mean and variance of the images' own patches are given back.
        """
        patches = patchify(x, self.backbone.patch)
        predicted = self(x, visible)["reconstruction"].float()
        if self.normalise:
            variance, mean = torch.var_mean(patches, -1, keepdim=True)
            predicted = predicted * (variance + 1e-6).sqrt() + mean
        drawn = torch.where(visible.to(x.device).flatten(1)[:, :, None], patches, predicted)
        return unpatchify(drawn, self.backbone.patch, x.shape[2:])
