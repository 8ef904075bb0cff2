"""Images that are nearly the same, such as neighbouring slices of a scan."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor

from flambeau.data.images.image_set import ImageSet


def difference_hash(images: Float[Tensor, "n channels height width"], side: int = 8) -> Bool[Tensor, "n bits"]:
    """``2 * side ** 2`` bits an image: whether brightness rises to the right, and downwards, on a coarse grid.

    Channels are averaged. Two versions of an image differ in few bits whatever their brightness, contrast and size.

    Raises:
        ValueError: no batch of images, or `side` below 1.
    """
    if images.ndim != 4 or side < 1:
        raise ValueError(f"images must be [N, C, H, W] and side at least 1, got {list(images.shape)} and {side}")
    gray = images.float().mean(1, keepdim=True)
    right = F.interpolate(gray, (side, side + 1), mode="area").diff(dim=3)
    down = F.interpolate(gray, (side + 1, side), mode="area").diff(dim=2)
    return torch.cat([right.flatten(1), down.flatten(1)], 1) > 0


def distinct(
    features: Shaped[Tensor, "n dim"], *, threshold: float, groups: Int64[Tensor, " n"] | None = None
) -> Int64[Tensor, " kept"]:
    """Indices, in order, of images of which none is as similar as `threshold` to one that was kept before it.

    Hashes (bool) are similar by their share of equal bits, embeddings (float) by their cosine. Each image is compared
    with the kept ones, not with its neighbour alone: along a scan every slice is like the next, and a whole scan would
    be one chain. groups: compare within a group (a scan) only, which is also faster. Such slices are left out before
    contrastive pre-training by Wolf et al. 2024 (arXiv 2410.14524), whose own similarity measures differ.

    Raises:
        ValueError: another shape, a threshold outside (0, 1], or groups of another length.
    """
    if features.ndim != 2:
        raise ValueError(f"features must be [n, dim], got {list(features.shape)}")
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold must lie in (0, 1], got {threshold}")
    if groups is not None and groups.shape != features.shape[:1]:
        raise ValueError(f"groups must have shape [{len(features)}], got {list(groups.shape)}")
    bits = features.dtype == torch.bool
    rows = features.float() * 2 - 1 if bits else F.normalize(features.float(), dim=1)
    kept = torch.zeros(len(rows), dtype=torch.bool)
    parts = [torch.arange(len(rows))] if groups is None else [(groups == g).nonzero()[:, 0] for g in groups.unique()]
    for part in parts:
        chosen = rows.new_empty(len(part), rows.shape[1])
        count = 0
        for place in part.tolist():
            cosine = chosen[:count] @ rows[place]
            similarity = (cosine / rows.shape[1] + 1) / 2 if bits else cosine
            if count == 0 or not (similarity >= threshold - 1e-6).any():
                chosen[count] = rows[place]
                kept[place] = True
                count += 1
    return kept.nonzero()[:, 0]


def without_near_duplicates(images: ImageSet, *, threshold: float = 0.95) -> ImageSet:
    """`images` without those that ``difference_hash`` tells apart too little, within a group where there are groups."""
    return images[distinct(difference_hash(images.images), threshold=threshold, groups=images.groups)]
