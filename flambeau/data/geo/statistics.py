"""Mean and deviation of bands over the valid pixels of any number of samples."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Self

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from flambeau.data.geo.dataset import Sample


class BandStatistics:
    """Streaming mean, deviation, least and largest value of each band, in float64 (Chan et al. 1983's pairwise update).

    Pixels that are not valid play no part. Two of them are merged with :meth:`merge`, as from several workers.
    """

    def __init__(self, bands: int):
        self.count = 0
        self.mean = torch.zeros(bands, dtype=torch.float64)
        self.squares = torch.zeros(bands, dtype=torch.float64)
        self.min = torch.full((bands,), torch.inf, dtype=torch.float64)
        self.max = torch.full((bands,), -torch.inf, dtype=torch.float64)

    @property
    def std(self) -> Float[Tensor, " bands"]:
        """Deviation over all pixels (dividing by their number)."""
        return (self.squares / max(self.count, 1)).sqrt()

    def update(
        self, image: Float[Tensor, "*batch bands height width"], valid: Bool[Tensor, "*batch height width"]
    ) -> Self:
        """Add the valid pixels of an image or a batch.

        Raises:
            ValueError: another number of bands, or a `valid` that does not fit.
        """
        if image.shape[-3] != len(self.mean) or image.shape[:-3] + image.shape[-2:] != valid.shape:
            raise ValueError(
                f"image must be (..., {len(self.mean)}, height, width) and valid fit it, got "
                f"{tuple(image.shape)} and {tuple(valid.shape)}"
            )
        pixels = image.movedim(-3, -1)[valid].double()
        if len(pixels) == 0:
            return self
        other = BandStatistics(len(self.mean))
        other.count, other.mean = len(pixels), pixels.mean(0)
        other.squares = (pixels - other.mean).square().sum(0)
        other.min, other.max = pixels.amin(0), pixels.amax(0)
        return self.merge(other)

    def merge(self, other: BandStatistics) -> Self:
        """Add what another one has seen."""
        count = self.count + other.count
        if other.count:
            delta = other.mean - self.mean
            self.mean = self.mean + delta * (other.count / count)
            self.squares = self.squares + other.squares + delta.square() * (self.count * other.count / count)
            self.min, self.max = torch.minimum(self.min, other.min), torch.maximum(self.max, other.max)
        self.count = count
        return self


def band_statistics(samples: Iterable[Sample]) -> BandStatistics:
    """Over samples or batches with ``image`` and ``valid``.

    Raises:
        ValueError: there are none.
    """
    statistics = None
    for sample in samples:
        if statistics is None:
            statistics = BandStatistics(sample["image"].shape[-3])
        statistics.update(sample["image"], sample["valid"])
    if statistics is None:
        raise ValueError("samples: there are none")
    return statistics
