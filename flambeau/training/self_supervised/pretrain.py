"""Train a self-supervised method on images without labels, and what its backbone says of an image as one vector."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from flambeau.data import Batches, ImageSet
from flambeau.training.progress import Progress
from flambeau.training.trainer import Fit, Trainer


def pretrain(
    method: nn.Module,
    images: ImageSet | Float[Tensor, "n channels *size"],
    *,
    views: Callable[[Tensor, torch.Generator], Any] | None,
    trainer: Trainer,
    batch_size: int,
    folder: Path | str | None = None,
    progress: Progress | None = None,
    seed: int = 0,
) -> Fit:
    """Train `method` in place; its ``.backbone`` is what one keeps.

    method: an ``nn.Module`` that maps a batch of views to a dict with ``"loss"`` (MoCoV2, BYOL, SwAV, SimCLR, SparK,
    SiT, MAE ...); the dict's other scalars are logged. views: ``views(images, generator)``, the views of a batch, as
    ``data.augment.Views`` gives them (a list of batches), or one augmented batch; None gives the images as they are.
    Labels, if there are any, are not looked at. Resumes from `folder` as every training.

    Raises:
        ValueError: fewer images than a batch, or what the method or the trainer refuses.
    """
    pixels = images.images if isinstance(images, ImageSet) else images
    return trainer.fit(
        method,
        own_loss,
        Batches(pixels, batch_size, transform=views),
        folder=folder,
        progress=progress,
        seed=seed,
    )


def own_loss(method: Any, batch: Any) -> Any:
    """The loss of a method that computes its own."""
    return {name: value for name, value in method(batch).items() if not isinstance(value, Tensor) or value.ndim == 0}


def pooled_features(
    backbone: nn.Module, images: Float[Tensor, "batch channels *size"], pool: Literal["mean", "max"] = "mean"
) -> Float[Tensor, "batch dim"]:
    """One vector an image, of any backbone.

    A backbone with ``.stages(x)`` (feature maps by name) gives its last map; others are called. Of several maps the
    last counts; a map is pooled over space, tokens [batch, tokens, dim] over the tokens, vectors are taken as they are.

    Raises:
        TypeError: the backbone gives no tensor.
        ValueError: a tensor without a feature axis.
    """
    found = backbone.stages(images) if hasattr(backbone, "stages") else backbone(images)
    if isinstance(found, Mapping):
        found = list(found.values())
    if isinstance(found, (list, tuple)):
        found = found[-1]
    if not isinstance(found, Tensor):
        raise TypeError(f"backbone must give a tensor or feature maps, got {type(found).__name__}")
    if found.ndim < 2:
        raise ValueError(f"backbone must give [batch, dim, ...], got {list(found.shape)}")
    if found.ndim == 2:
        return found
    places = (1,) if found.ndim == 3 else tuple(range(2, found.ndim))
    return found.mean(places) if pool == "mean" else found.amax(places)


@torch.no_grad()
def feature_dim(backbone: nn.Module, input_shape: tuple[int, ...]) -> int:
    """Length of :func:`pooled_features`, from one dry run on zeros of `input_shape` (channels, height, width).

    Raises:
        ValueError: the backbone does not take such images.
    """
    training = backbone.training
    like = next(backbone.parameters())
    try:
        return pooled_features(backbone.eval(), like.new_zeros(1, *input_shape)).shape[1]
    except RuntimeError as error:
        raise ValueError(f"input_shape: the backbone does not take images of {tuple(input_shape)}: {error}") from None
    finally:
        backbone.train(training)


class PooledFeatures(nn.Module):
    """:func:`pooled_features` as a module, for a backbone under a head: ``Sequential(PooledFeatures(cnn), Linear)``."""

    def __init__(self, backbone: nn.Module, pool: Literal["mean", "max"] = "mean"):
        super().__init__()
        if pool not in ("mean", "max"):
            raise ValueError(f"pool must be 'mean' or 'max', got {pool!r}")
        self.backbone, self.pool = backbone, pool

    def forward(self, images: Float[Tensor, "batch channels *size"]) -> Float[Tensor, "batch dim"]:
        return pooled_features(self.backbone, images, self.pool)
