"""How many bytes autograd keeps between forward and backward."""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType

import torch
from torch import Tensor


class SavedTensors:
    """Count what operations inside the block save for their backward.

        with SavedTensors(exclude=model.parameters()) as saved:
            loss = model(x).sum()
        print(saved.bytes)

    Two saved views of one storage are held once and counted once, at the storage's full size. A storage is kept alive
    until the block ends, so that one that is freed and reused meanwhile is not taken for another. `.bytes` is the
    total, `.shapes` the shape and dtype of the first tensor saved of each storage, largest storage first.

    exclude: tensors whose storages are not counted (parameters, inputs that exist anyway).
    """

    def __init__(self, exclude: Iterable[Tensor] = ()):
        self._excluded = {_storage(tensor).data_ptr() for tensor in exclude}
        self._held: dict[int, Tensor] = {}
        self.bytes = 0
        self.shapes: list[tuple[tuple[int, ...], torch.dtype]] = []

    def __enter__(self) -> SavedTensors:
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor)
        self._hooks.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hooks.__exit__(kind, error, trace)
        held = sorted(self._held.values(), key=lambda tensor: -_storage(tensor).nbytes())
        self.bytes = sum(_storage(tensor).nbytes() for tensor in held)
        self.shapes = [(tuple(tensor.shape), tensor.dtype) for tensor in held]
        self._held.clear()

    def _pack(self, tensor: Tensor) -> Tensor:
        pointer = _storage(tensor).data_ptr()
        if pointer not in self._excluded:
            self._held.setdefault(pointer, tensor.detach())
        return tensor


def _storage(tensor: Tensor) -> torch.UntypedStorage:
    return tensor.untyped_storage()
