"""Batches of a config's data sets: with worker processes, the order and every random number a function of the step."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from flambeau.data import Batches, ImageSet
from flambeau.data.seeding import derive_seed
from flambeau.training.distillation.names import find
from flambeau.training.distillation.per_sample import PerSample
from flambeau.training.distillation.tags import ConfigError

Collate = Callable[[list[Any]], Any]


class LoadedBatches(Batches):
    """:class:`~flambeau.data.Batches` of a map-style data set, read ahead by worker processes.

    While a training item is read, the global random generators are seeded by the run's seed, the epoch and the item,
    so what a transform of the data set draws does not depend on the number of workers, and a resumed training sees
    what an uninterrupted one does.

    Args:
        dataset: map-style; its items are collated.
        batch_size, shuffle, drop_last: as of ``Batches``.
        collate: of a list of items.
        workers: processes that read ahead; 0 reads in this one.
        augment_seed: items are drawn by this seed and their number alone: each looks the same in all epochs.
        index: add the items' numbers, int64 [B], as the last entry of the (tuple) batch, or as "index" of a dict.

    Raises:
        ValueError: as of ``Batches``, or negative workers.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        *,
        shuffle: bool = True,
        drop_last: bool = True,
        collate: Collate = default_collate,
        workers: int = 0,
        augment_seed: int | None = None,
        index: bool = False,
    ):
        super().__init__(dataset, batch_size, shuffle=shuffle, drop_last=drop_last)
        if workers < 0:
            raise ValueError(f"workers must not be negative, got {workers}")
        self.items = _Items(dataset, augment_seed)
        self.collate, self.workers, self.index = collate, workers, index
        self._ahead: tuple[tuple[int, int], Iterator[Any]] | None = None  # (seed, next step), batches from there on

    def batch(self, step: int, generator: torch.Generator) -> Any:
        """The batch of a step; see ``Batches.batch``."""
        if step < 0:
            raise ValueError(f"step must not be negative, got {step}")
        seed = generator.initial_seed()
        if not self.workers:
            return self._joined([self.items[key] for key in self._keys(seed, step)])
        if self._ahead is None or self._ahead[0] != (seed, step):
            ahead = DataLoader(
                self.items,
                batch_sampler=_From(self, seed, step),
                num_workers=self.workers,
                collate_fn=self._joined,
                generator=torch.Generator(),  # or it would draw from the global one
            )
            self._ahead = ((seed, step), iter(ahead))
        batches = self._ahead[1]
        batch = next(batches)
        self._ahead = ((seed, step + 1), batches)
        return batch

    def _keys(self, seed: int, step: int) -> list[tuple[int | None, int]]:
        epoch, position = divmod(step, len(self))
        rows = self._order(seed, epoch)[position * self.batch_size : (position + 1) * self.batch_size].tolist()
        return [(derive_seed(seed, "item", epoch, row), row) for row in rows]

    def _take(self, rows: Tensor) -> Any:
        return self._joined([self.items[None, row] for row in rows.tolist()])

    def _joined(self, items: list[tuple[int, Any]]) -> Any:
        batch = self.collate([item for _, item in items])
        if not self.index:
            return batch
        numbers = torch.tensor([number for number, _ in items])
        return {**batch, "index": numbers} if isinstance(batch, Mapping) else (*batch, numbers)


class _Items(Dataset):
    """Items by (seed, number); an `augment_seed` takes the seed's place."""

    def __init__(self, dataset: Any, augment_seed: int | None):
        self.dataset, self.augment_seed = dataset, augment_seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: tuple[int | None, int]) -> tuple[int, Any]:
        seed, number = key
        if self.augment_seed is not None:
            seed = derive_seed(self.augment_seed, "augment", number)
        if seed is None:
            return number, self.dataset[number]
        with _seeded(seed):
            return number, self.dataset[number]


class _From:
    """The keys of each batch from a step on, without end: a worker never waits for an epoch to begin."""

    def __init__(self, batches: LoadedBatches, seed: int, step: int):
        self.batches, self.seed, self.step = batches, seed, step

    def __iter__(self) -> Iterator[list[tuple[int | None, int]]]:
        step = self.step
        while True:
            yield self.batches._keys(self.seed, step)
            step += 1


class Augment:
    """A transform of images as one of whole batches: ``transform(images, generator)`` on the first entry."""

    def __init__(self, transform: Callable[[Tensor, torch.Generator], Tensor]):
        self.transform = transform

    def __call__(self, batch: tuple[Any, ...], generator: torch.Generator) -> tuple[Any, ...]:
        return (self.transform(batch[0], generator), *batch[1:])


def build_batches(
    section: Mapping[str, Any], dataset: Any, *, train: bool, factor: int = 1, allow: Sequence[str]
) -> Batches:
    """The batches of a ``train_data_loader`` or ``val_data_loader`` section.

    Args:
        section: ``kwargs`` {batch_size, num_workers, drop_last, shuffle}, ``sampler``, ``collate_fn``, ``transform``
            (of images in tensors: ``(images, generator) -> images``), ``augment_seed``, ``requires_supp``.
        dataset: an :class:`~flambeau.data.ImageSet`, a tuple or dict of tensors, a map-style data set, or ``Batches``.
        train: whether the order is shuffled, unless the section says so itself.
        factor: multiplies the batch size.

    Raises:
        ConfigError: a missing or wrong value.
    """
    if isinstance(dataset, Batches):
        return dataset
    kwargs = section.get("kwargs") or {}
    size = kwargs.get("batch_size")
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise ConfigError(f"batch_size: expected a whole number of at least 1, got {size!r}")
    shuffle = bool(kwargs.get("shuffle", train))
    sampler = (section.get("sampler") or {}).get("class_or_func")
    if sampler is not None:
        shuffle = getattr(sampler, "__name__", str(sampler)).rpartition(".")[2] != "SequentialSampler"
    seed = section.get("augment_seed")
    index = bool(section.get("requires_supp") or section.get("cache_output") or seed is not None)
    transform = section.get("transform")
    common: dict[str, Any] = dict(
        batch_size=size * factor, shuffle=shuffle, drop_last=bool(kwargs.get("drop_last", False))
    )
    if isinstance(dataset, ImageSet):
        labels = dataset.labels if dataset.labels is not None else torch.full((len(dataset),), -100)
        dataset = (dataset.images, labels)
    if isinstance(dataset, tuple):
        arrays = (*dataset, torch.arange(len(dataset[0]))) if index else dataset
        if transform is not None:
            transform = Augment(transform) if seed is None else PerSample(transform, seed)
        return Batches(arrays, transform=transform, **common)
    if isinstance(dataset, Mapping):
        numbers = {"index": torch.arange(len(next(iter(dataset.values()))))} if index else {}
        return Batches({**dataset, **numbers}, transform=transform, **common)
    if transform is not None:
        raise ConfigError("transform: a map-style data set has its own; this one is of sets of tensors")
    collate = section.get("collate_fn")
    return LoadedBatches(
        dataset,
        collate=default_collate if collate is None else find(collate, (), allow, "collate_fn"),
        workers=int(kwargs.get("num_workers") or 0),
        augment_seed=seed,
        index=index,
        **common,
    )


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed Python's, NumPy's and torch's generators, and put them back afterwards."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.random.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])
