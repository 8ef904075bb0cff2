"""Mini-batches whose order is a pure function of the step, so that resuming needs no sampler state."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from flambeau.data.seeding import derive_generator

Transform = Callable[[Any, torch.Generator], Any]


class Batches:
    """Shuffled mini-batches of tensors or of a map-style dataset, addressed by step.

    Batch `step` belongs to epoch ``step // len(self)``; the epoch's permutation depends only on the generator's seed
    and the epoch. Asking for the same step twice, in any order, in any process, gives the same batch.

    Args:
        arrays_or_dataset: a tensor, a tuple or dict of tensors with equal first axis, or a map-style ``Dataset``
            (its items are collated by :func:`torch.utils.data.default_collate`).
        batch_size: samples a batch.
        shuffle: a new permutation each epoch; without it, the given order.
        drop_last: leave out the last, smaller batch of an epoch.
        transform: ``transform(batch, generator)`` applied to each training batch. Its generator is seeded by the step.

    Raises:
        ValueError: arrays of different lengths or none at all, a batch size below 1, or fewer samples than one batch
            with ``drop_last=True``.
        TypeError: something that is neither tensors nor a dataset with a length.
    """

    def __init__(
        self,
        arrays_or_dataset: Tensor | tuple[Tensor, ...] | Mapping[str, Tensor] | Dataset,
        batch_size: int,
        *,
        shuffle: bool = True,
        drop_last: bool = True,
        transform: Transform | None = None,
    ):
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.source = arrays_or_dataset
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.transform = transform
        self.samples = _length(arrays_or_dataset)
        if drop_last and self.samples < batch_size:
            raise ValueError(
                f"batch_size {batch_size} exceeds the {self.samples} samples; pass a smaller one or drop_last=False"
            )
        self._epoch: tuple[tuple[int, int], Tensor] | None = None  # the last permutation, to draw it once an epoch

    def __len__(self) -> int:
        """Batches per epoch."""
        return self.samples // self.batch_size if self.drop_last else -(-self.samples // self.batch_size)

    def batch(self, step: int, generator: torch.Generator) -> Any:
        """The batch of a step: of the tensors' own structure (tensor, tuple or dict), or as collated.

        Args:
            step: counted from 0 through all epochs.
            generator: only its seed (``initial_seed()``) is read; its state is neither used nor changed.
        """
        if step < 0:
            raise ValueError(f"step must not be negative, got {step}")
        seed = generator.initial_seed()
        epoch, position = divmod(step, len(self))
        rows = self._order(seed, epoch)[position * self.batch_size : (position + 1) * self.batch_size]
        batch = self._take(rows)
        return batch if self.transform is None else self.transform(batch, derive_generator(seed, "transform", step))

    def all(self, batch_size: int | None = None) -> Iterator[Any]:
        """Every sample once, in the given order, without the transform: for evaluation."""
        size = self.batch_size if batch_size is None else batch_size
        if size < 1:
            raise ValueError(f"batch_size must be at least 1, got {size}")
        for start in range(0, self.samples, size):
            yield self._take(torch.arange(start, min(start + size, self.samples)))

    def _order(self, seed: int, epoch: int) -> Tensor:
        key = (seed, epoch) if self.shuffle else (0, 0)
        if self._epoch is None or self._epoch[0] != key:
            if self.shuffle:
                order = torch.randperm(self.samples, generator=derive_generator(seed, "epoch", epoch))
            else:
                order = torch.arange(self.samples)
            self._epoch = (key, order)
        return self._epoch[1]

    def _take(self, rows: Tensor) -> Any:
        if isinstance(self.source, Tensor):
            return _rows(self.source, rows)
        if isinstance(self.source, tuple):
            return tuple([_rows(tensor, rows) for tensor in self.source])
        if isinstance(self.source, Mapping):
            return {name: _rows(tensor, rows) for name, tensor in self.source.items()}
        return default_collate([self.source[row] for row in rows.tolist()])


def _rows(tensor: Tensor, rows: Tensor) -> Tensor:
    return tensor.index_select(0, rows.to(tensor.device))


def _length(source: Any) -> int:
    if isinstance(source, Tensor):
        named = {"the tensor": source}
    elif isinstance(source, tuple):
        named = {f"array {position}": tensor for position, tensor in enumerate(source)}
    elif isinstance(source, Mapping):
        named = {f"array {name!r}": tensor for name, tensor in source.items()}
    elif hasattr(source, "__getitem__") and hasattr(source, "__len__") and not isinstance(source, (list, str, bytes)):
        if len(source) == 0:
            raise ValueError(f"the dataset {type(source).__name__} is empty")
        return len(source)
    else:
        raise TypeError(
            f"expected a tensor, a tuple or dict of tensors, or a map-style dataset, got {type(source).__name__}"
        )
    for name, tensor in named.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
        if tensor.ndim == 0:
            raise ValueError(f"{name} must have a first axis of samples, got a scalar")
    lengths = {name: len(tensor) for name, tensor in named.items()}
    if len(set(lengths.values())) != 1:
        raise ValueError(f"arrays must have equal first axes, got {lengths or 'no arrays'}")
    length = next(iter(lengths.values()))
    if length == 0:
        raise ValueError("the arrays are empty")
    return length
