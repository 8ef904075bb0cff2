"""Chips of images and labels by a split in space, and a network trained on some of their bands."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import shapely
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from flambeau.data.batches import Batches
from flambeau.data.geo import GeoDataset, GridSampler, RasterDataset, VectorDataset
from flambeau.data.geo.splits import regions
from flambeau.data.geo.statistics import BandStatistics
from flambeau.data.geo.transforms import Normalize
from flambeau.data.geo.vector import SUFFIXES
from flambeau.data.seeding import derive_generator
from flambeau.objectives.segmentation import confusion_matrix, masked_cross_entropy, mean_iou
from flambeau.training import Trainer


@dataclass(frozen=True)
class Chips:
    """Images, labels as numbers from 0, and which pixels are valid, in memory."""

    image: Float[Tensor, "chips bands size size"]
    mask: Int[Tensor, "chips size size"]
    valid: Bool[Tensor, "chips size size"]


@dataclass(frozen=True)
class ChipSplit:
    """Chips to train on; others of the same area, held out at random; and those of a block of their own.

    values: the label values that class 0, 1, ... stand for. normalize: by the mean and deviation of the bands over the
    chips trained on. block_area: polygon of the block.
    """

    train: Chips
    held_out: Chips
    block: Chips
    values: tuple[int, ...]
    normalize: Normalize
    block_area: Any


def open_labels(path: str, label: str | None, date: dict[str, Any]) -> GeoDataset:
    """A raster of classes or a vector file whose column `label` has them."""
    found = Path(path)
    vector = found.is_file() and found.suffix.lower() in SUFFIXES
    if vector or (found.is_dir() and not list(found.rglob("*.tif"))):
        return VectorDataset(path, 1.0, label=label)
    return RasterDataset(path, kind="mask", **date)


def draw_chips(joined: GeoDataset, *, size: int, count: int, share: float, progress: Any, seed: int) -> ChipSplit:
    """Chips of a join of images and labels; the lowest `share` of its height is the block, two chips from the rest.

    At most `count` chips to train on, a quarter of that each to hold out and of the block.

    Raises:
        ValueError: too few chips for the three, or fewer than two classes.
    """
    left, bottom, right, top = joined.bounds
    cut, gap = bottom + share * (top - bottom), size * joined.res[1]
    areas = [shapely.box(left, cut + gap, right, top), shapely.box(left, bottom, right, cut - gap)]
    rest, block = regions(joined, areas)
    quarter = max(1, count // 4)
    pools = []
    for number, (part, wanted) in enumerate(((rest, count + quarter), (block, quarter))):
        try:
            queries = GridSampler(part, size, min_valid=0.5).queries
        except ValueError as error:
            raise ValueError(f"{'the block' if number else 'the rest'} of the area is too small: {error}") from None
        order = torch.randperm(len(queries), generator=derive_generator(seed, "chips", number)).tolist()[:wanted]
        with progress("read chips", len(order)) as task:
            samples = []
            for place in order:
                samples.append(part[queries[place]])
                task.advance()
        pools.append({key: torch.stack([sample[key] for sample in samples]) for key in ("image", "mask", "valid")})
    trained = len(pools[0]["mask"]) * 4 // 5
    if trained < 1 or trained == len(pools[0]["mask"]):
        raise ValueError(
            f"the area has {len(pools[0]['mask'])} chips of {size} pixels outside the block; choose a smaller size"
        )
    values = pools[0]["mask"][:trained][pools[0]["valid"][:trained]].unique()
    if len(values) < 2:
        raise ValueError(f"labels: the chips trained on have the values {values.tolist()}, expected two or more")
    statistics = BandStatistics(pools[0]["image"].shape[1])
    statistics.update(pools[0]["image"][:trained], pools[0]["valid"][:trained])
    normalize = Normalize(statistics.mean.float(), statistics.std.float().clamp_min(1e-6))
    rest_chips, block_chips = (_numbered(normalize(pool), values) for pool in pools)
    train, held_out = (
        Chips(rest_chips.image[part], rest_chips.mask[part], rest_chips.valid[part])
        for part in (slice(None, trained), slice(trained, None))
    )
    return ChipSplit(train, held_out, block_chips, tuple(values.tolist()), normalize, areas[1])


def _numbered(pool: dict[str, Tensor], values: Tensor) -> Chips:
    """Labels as places in `values`; one that was not trained on is not valid."""
    number = torch.searchsorted(values, pool["mask"]).clamp_max(len(values) - 1)
    return Chips(pool["image"], number, pool["valid"] & (values[number] == pool["mask"]))


def study_bands(
    run: Any, joined: GeoDataset, choices: Mapping[str, Sequence[int]], *, size: int, chips: int, batch_size: int,
    model: Callable[..., nn.Module], training: Trainer,
) -> tuple[dict[str, OfBands], ChipSplit]:  # fmt: skip
    """A network for each choice of bands, all trained on the same chips of a join."""
    split = draw_chips(joined, size=size, count=chips, share=0.3, progress=run.progress, seed=run.seed)
    run.note(f"{len(split.train.image)} chips of {size} x {size} px trained on, {len(split.block.image)} of the block.")
    networks = {}
    for name, bands in choices.items():
        networks[name] = train_on_bands(
            model, split, bands, training, batch_size=batch_size, folder=run.folder / "train" / name,
            progress=run.progress, seed=run.seed, device=run.device,
        )  # fmt: skip
    return networks, split


class OfBands(nn.Module):
    """A network that sees some of the bands."""

    def __init__(self, network: nn.Module, bands: Sequence[int]):
        super().__init__()
        self.network = network
        self.register_buffer("bands", torch.tensor(list(bands)))

    def forward(self, x: Float[Tensor, "batch all height width"]) -> Float[Tensor, "batch classes height width"]:
        return self.network(x[:, self.bands])


def train_on_bands(
    model: Callable[..., nn.Module], split: ChipSplit, bands: Sequence[int], trainer: Trainer, *, batch_size: int,
    folder: Path, progress: Any, seed: int, device: torch.device,
) -> OfBands:  # fmt: skip
    """A network trained on the valid pixels of a split's training chips."""
    torch.manual_seed(seed)
    network = OfBands(model(in_channels=len(bands), classes=len(split.values)), bands).to(device)
    batches = Batches((split.train.image, split.train.mask, split.train.valid), batch_size)
    trainer.fit(network, _loss, batches, folder=folder, progress=progress, seed=seed)
    return network


def _loss(network: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    image, mask, valid = batch
    return masked_cross_entropy(network(image), mask, valid)


@torch.no_grad()
def score(network: Callable[[Tensor], Tensor], chips: Chips, classes: int, device: torch.device) -> float:
    """Mean intersection over union of all valid pixels of the chips."""
    matrix = torch.zeros(classes, classes, dtype=torch.int64)
    for start in range(0, len(chips.image), 32):
        part = slice(start, start + 32)
        predicted = network(chips.image[part].to(device)).argmax(1).cpu()
        matrix += confusion_matrix(predicted, chips.mask[part], chips.valid[part], classes)
    return mean_iou(matrix)


def majority(chips: Chips, classes: int) -> Callable[[Tensor], Tensor]:
    """The predictor that always says the commonest class of some chips."""
    counts = torch.bincount(chips.mask[chips.valid], minlength=classes)
    best = torch.nn.functional.one_hot(counts.argmax(), classes).float()
    return partial(_constant, best)


def _constant(scores: Tensor, image: Tensor) -> Tensor:
    return scores.to(image.device)[None, :, None, None].expand(len(image), -1, *image.shape[2:])
