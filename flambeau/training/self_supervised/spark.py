"""Masked image modelling for convolutional networks: SparK."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from flambeau.models.vision.convnext import LayerNorm2d
from flambeau.nn.sparse import SparseContext, find_taps, record_taps, to_sparse
from flambeau.nn.unet_decoder import BATCH_NORM, CONV, LightDecoder
from flambeau.objectives.masking import random_cells
from flambeau.objectives.reconstruction import masked_error, normalise_patches, patchify, unpatchify

SCALES = 4


class SparK(nn.Module):
    """Sparse masked modelling (Tian et al. 2023, arXiv 2301.03580): a CNN learns to fill in what it has not seen.

    The image is cut into cells as large as the encoder's stride. The encoder, made sparse, sees some of them; its
    feature maps are normalised, their hidden positions filled with a learnt embedding of each scale, and a light U-Net
    predicts the image. The loss is the mean squared error of the hidden cells, whose pixels are normalised cell by
    cell; a prediction of each cell's mean has loss 1 (and cells without any variation count 0).

    encoder: any network of `to_sparse`'s layers; it is copied. `backbone` is the copy, an ordinary dense network
        wherever it is used outside of this module.
    input_size: of an image or volume, in pixels. Images of other sizes that are multiples of the stride can follow.
    mask_ratio: of hidden cells; round(cells (1 - ratio)) stay visible.
    decoder_width: channels of the decoder at the encoder's stride, halved at each doubling of the resolution.
    taps: names of the modules whose outputs are decoded; None takes the encoder's stages, up to four.

    Batch norm sees the visible positions of the batch that its process has; make the encoder's `nn.SyncBatchNorm` to
    have it see those of all processes.

    Raises:
        ValueError: a size that the stride does not divide, a ratio that hides no or every cell, a stride that is not a
            power of two, or an encoder whose features are not 0 where its input is hidden.
        TypeError: a layer that cannot be made sparse.
    """

    def __init__(
        self,
        encoder: nn.Module,
        input_size: Sequence[int] = (224, 224),
        mask_ratio: float = 0.6,
        decoder_width: int = 768,
        taps: Sequence[str] | None = None,
    ):
        super().__init__()
        dims = len(input_size)
        if dims not in CONV:
            raise ValueError(f"input_size must have 2 or 3 axes, got {tuple(input_size)}")
        if not 0 < mask_ratio < 1:
            raise ValueError(f"mask_ratio must lie in (0, 1), got {mask_ratio}")
        first = next((module for module in encoder.modules() if isinstance(module, _ConvNd)), None)
        if first is None:
            raise ValueError(f"encoder {type(encoder).__name__} has no convolution")
        self.channels, self.mask_ratio = first.in_channels, mask_ratio
        self.context = SparseContext()
        self.backbone = to_sparse(encoder, self.context)
        found = find_taps(self.backbone, self.channels, input_size, taps)
        self.taps = list(reversed(found))[:SCALES] if taps is None else list(reversed(found))
        self.stride = self.taps[0].stride
        self.keep(input_size)
        record_taps(self.backbone, [tap.name for tap in self.taps], self.context)

        self.decoder = LightDecoder(self.stride, decoder_width, self.channels, dims)
        batch_norm = any(isinstance(module, _BatchNorm) for module in encoder.modules())
        norms, projections, embeddings = [], [], []
        for tap in self.taps:
            level = (self.stride // tap.stride).bit_length() - 1
            if level >= len(self.decoder.blocks):
                raise ValueError(f"tap {tap.name!r} has the resolution of the image; the decoder has no block for it")
            width = self.decoder.widths[level]
            norm = BATCH_NORM[dims](tap.channels) if batch_norm else LayerNorm2d(tap.channels, eps=1e-6)
            norms.append(to_sparse(norm, self.context))
            embedding = nn.Parameter(torch.zeros(1, tap.channels, *[1] * dims))
            embeddings.append(nn.init.trunc_normal_(embedding, std=0.02, a=-0.02, b=0.02))
            if level == 0 and tap.channels == width:
                projections.append(nn.Identity())
            else:
                kernel = 1 if level == 0 else 3
                projections.append(CONV[dims](tap.channels, width, kernel, padding=kernel // 2))
        self.norms, self.projections = nn.ModuleList(norms), nn.ModuleList(projections)
        self.embeddings = nn.ParameterList(embeddings)
        self._check_encoder(input_size)

    def keep(self, size: Sequence[int]) -> int:
        """Visible cells of an image of `size` pixels.

        Raises:
            ValueError: the encoder's stride does not divide it, or the mask ratio leaves no or every cell visible.
        """
        if any(n % self.stride for n in size):
            pixels = " x ".join(map(str, size))
            raise ValueError(f"an image of {pixels} pixels is not divisible by the encoder's stride, {self.stride}")
        cells = math.prod(n // self.stride for n in size)
        keep = round(cells * (1 - self.mask_ratio))
        if not 0 < keep < cells:
            raise ValueError(f"mask_ratio {self.mask_ratio} leaves {keep} of {cells} cells visible, not some of them")
        return keep

    def forward(
        self, x: Float[Tensor, "batch channels *size"], mask: Bool[Tensor, batch * grid] | None = None
    ) -> dict[str, Tensor]:
        """Reconstruct hidden cells.

        mask: True where a cell is visible; None draws one from the global generator.

        Returns:
            "loss"; "reconstruction", in the shape of `x` and normalised cell by cell; and "mask".

        Raises:
            ValueError: channels or a size that do not fit, or a mask of another grid or that hides no or every cell.
        """
        if x.ndim != 2 + len(self.embeddings[0].shape[2:]) or x.shape[1] != self.channels:
            raise ValueError(f"x must be [batch, {self.channels}, *size] as the encoder's input, got {list(x.shape)}")
        grid = tuple(n // self.stride for n in x.shape[2:])
        keep = self.keep(x.shape[2:])
        if mask is None:
            mask = random_cells(len(x), grid, keep)
        elif mask.shape != (len(x), *grid) or mask.dtype != torch.bool:
            raise ValueError(f"mask must be boolean {[len(x), *grid]}, got {mask.dtype} {list(mask.shape)}")
        elif mask.all() or not mask.any():
            raise ValueError(f"mask must hide some cells and not all, got {int(mask.sum())} of {mask.numel()} visible")
        mask = mask.to(x.device)
        reconstruction = self.decoder(self._densified(x, mask))
        target = normalise_patches(patchify(x, self.stride))
        loss = masked_error(patchify(reconstruction, self.stride), target, ~mask.flatten(1)[..., None], "l2")
        return {"loss": loss, "reconstruction": reconstruction, "mask": mask}

    def encoder_state(self) -> dict[str, Tensor]:
        """Weights and statistics of the encoder, by the names that the dense network has for them."""
        return self.backbone.state_dict()

    def _densified(self, x: Tensor, mask: Tensor) -> list[Tensor]:
        """Feature maps without holes, of the decoder's widths, from coarse to fine; zero where a scale has no tap."""
        with self.context(mask) as active:
            self.backbone(x)
            normed = [norm(active.features[tap.name]) for norm, tap in zip(self.norms, self.taps)]
        dense = [
            projection(torch.where(active.visible(y.shape[2:]), y, embedding.to(y.dtype)))
            for y, embedding, projection in zip(normed, self.embeddings, self.projections)
        ]
        by_stride = {tap.stride: y for tap, y in zip(self.taps, dense)}
        levels = len(self.decoder.blocks)
        return [by_stride.get(self.stride >> level) for level in range(levels)]

    @torch.no_grad()
    def _check_encoder(self, size: Sequence[int]) -> None:
        """Run once with a hidden half: what converted layers cannot see, such as functions, may mix positions."""
        reference = next(self.backbone.parameters())
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(1, self.channels, *size, generator=generator).to(reference)
        mask = random_cells(1, [n // self.stride for n in size], self.keep(size), generator).to(x.device)
        modes = [(module, module.training) for module in self.backbone.modules()]
        try:
            self.backbone.eval()
            with self.context(mask) as active:
                self.backbone(x)
        finally:
            for module, mode in modes:
                module.training = mode
        for tap in self.taps:
            feature = active.features[tap.name]
            if feature.masked_fill(active.visible(feature.shape[2:]), 0).any():
                raise ValueError(
                    f"the output of {tap.name!r} is not 0 where the input is hidden: an operation of the encoder's own "
                    f"forward mixes positions or is not 0 at 0; make it a module that to_sparse knows"
                )


@torch.no_grad()
def spark_visualise(
    model: SparK, img: Float[Tensor, "batch channels *size"], mask: Bool[Tensor, batch * grid] | None = None
) -> tuple[Float[Tensor, "batch channels *size"], Float[Tensor, "batch channels *size"]]:
    """What the model sees of images, and how it completes them.

    Predicted cells get mean and variance of the image's own cells; visible pixels are the image's. The model keeps its
    mode; use it in evaluation mode.

    Returns:
        The images with hidden cells set to 0, and the images with hidden cells predicted.
    """
    output = model(img, mask)
    stride, size = model.stride, img.shape[2:]
    variance, mean = torch.var_mean(patchify(img, stride), -1, keepdim=True)
    predicted = patchify(output["reconstruction"], stride) * (variance + 1e-6).sqrt() + mean
    visible = output["mask"][:, None]
    for axis in range(2, img.ndim):
        visible = visible.repeat_interleave(stride, axis)
    masked = img.masked_fill(~visible, 0)
    return masked, torch.where(visible, img, unpatchify(predicted.to(img.dtype), stride, size))
