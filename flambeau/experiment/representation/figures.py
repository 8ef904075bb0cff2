"""Pictures of self-supervised pre-training: what was reconstructed, and how the losses fell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def reconstruction_grid(
    clean: Float[Tensor, "count channels height width"],
    corrupted: Float[Tensor, "count channels height width"],
    reconstructed: Float[Tensor, "count channels height width"],
    mask: Bool[Tensor, "count 1 height width"],
    low: float = 0.0,
    high: float = 1.0,
) -> Figure:
    """Four rows, one column an image: clean, corrupted, reconstructed, and white where it was corrupted.

    Any number of channels: three are shown as colours, of others the first. low, high: values shown black and white.
    ``figure.savefig("grid.png")`` writes it.

    Raises:
        ValueError: different shapes, no image, or `low` not below `high`.
    """
    from matplotlib.figure import Figure

    if not clean.shape == corrupted.shape == reconstructed.shape or not len(clean):
        shapes = [list(images.shape) for images in (clean, corrupted, reconstructed)]
        raise ValueError(f"clean, corrupted and reconstructed must be images of one shape, got {shapes}")
    if mask.shape != (len(clean), 1, *clean.shape[2:]):
        raise ValueError(f"mask must be [{len(clean)}, 1, {clean.shape[2]}, {clean.shape[3]}], got {list(mask.shape)}")
    if not low < high:
        raise ValueError(f"low must lie below high, got {low} and {high}")
    mask_images = (low + (high - low) * mask).expand_as(clean)
    rows = {"clean": clean, "corrupted": corrupted, "reconstructed": reconstructed, "corrupted where": mask_images}
    height, width = clean.shape[2:]
    figure = Figure(figsize=(max(3.0, len(clean) * width / height), 4.4))
    for axis, (name, images) in zip(figure.subplots(4, 1), rows.items()):
        shown = ((images.detach().float().cpu() - low) / (high - low)).clamp(0, 1)
        shown = shown if shown.shape[1] == 3 else shown[:, :1]
        gap = torch.ones(len(shown), shown.shape[1], height, 1)
        strip = torch.cat([shown, gap], 3).permute(2, 0, 3, 1).flatten(1, 2)[:, :-1]
        axis.imshow(strip.squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=1)
        axis.set_title(name, fontsize=8, pad=2)
        axis.axis("off")
    figure.tight_layout(pad=0.3)
    return figure


def loss_curves(histories: Mapping[str, Sequence[Mapping[str, Any]]], smoothing: int = 10) -> Figure:
    """Every value of each training's history that is a loss, over steps; means of `smoothing` steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * len(histories), 3))
    for axis, (name, history) in zip(figure.subplots(1, len(histories), squeeze=False)[0], histories.items()):
        for key in history[0]:
            if key in ("step", "lr", "grad_norm", "accuracy"):
                continue
            values = torch.tensor([float(entry[key]) for entry in history])
            window = min(smoothing, len(values))
            axis.plot(range(window, len(values) + 1), values.unfold(0, window, 1).mean(1), label=key)
        axis.set_title(name, fontsize=9)
        axis.set_xlabel("step")
        axis.legend(fontsize=7)
    figure.tight_layout()
    return figure
