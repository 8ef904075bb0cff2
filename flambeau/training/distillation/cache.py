"""What a fixed teacher says of each sample, stored once: later epochs do not run the teacher."""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from flambeau.data import Batches
from flambeau.training.identity import describe

SHARD_BYTES = 64 * 2**20
PROBED = 64  # samples that tell data and transforms apart


class TeacherCache:
    """Tensors by sample, in shards below ``folder / key``: what was written before is found again by the same key.

    A shard is one safetensors file of samples in the order in which they came; it appears whole or not at all, is never
    changed, and is memory-mapped when read. Several processes may fill one folder: each adds its own shards, and sees
    those that were there when it opened the cache. A shard that is damaged is removed with a warning, and its samples
    are computed again; the others stay. Nothing is unpickled.

    Args:
        folder: of all caches; the entries of other keys lie beside these, and are yours to delete.
        key: see :func:`cache_key`.
        shard_bytes: tensors are held in memory until they are as large as this, then written.

    Attributes:
        hits: samples that were read.
        misses: samples for which the teacher was run.

    Raises:
        ValueError: a key that is no digest, or `shard_bytes` below 1.
    """

    def __init__(self, folder: str | Path, key: str, *, shard_bytes: int = SHARD_BYTES):
        if not re.fullmatch(r"[0-9a-f]{16,}", key):
            raise ValueError(f"key: expected at least 16 hexadecimal digits (see cache_key), got {key!r}")
        if shard_bytes < 1:
            raise ValueError(f"shard_bytes must be at least 1, got {shard_bytes}")
        self.folder, self.key, self.shard_bytes = Path(folder) / key[:16], key, shard_bytes
        self.hits = self.misses = 0
        self._structure: Any = None
        self._shards: list[dict[str, Tensor]] = []
        self._ids = np.empty(0, np.int64)  # of all shards, sorted
        self._places = np.empty(0, np.int64)  # of each id: shard * 2^32 + row
        self._pending: list[dict[str, Tensor]] = []
        self._pending_ids: set[int] = set()
        self._pending_bytes = 0
        for path in sorted(self.folder.glob("shard-*.safetensors")):
            self._open(path)

    def __len__(self) -> int:
        """Samples that are stored or waiting to be written."""
        return len(self._ids) + len(self._pending_ids)

    def fetch(self, ids: Int64[Tensor, " batch"], compute: Callable[[], Any]) -> Any:
        """What is stored of the samples or, if any of them is missing, the result of ``compute()``, which is stored.

        Args:
            ids: the samples' numbers, in the order of the batch, whatever that is.
            compute: runs the teacher on this batch; returns a tensor [B, ...], or nested dicts, lists and tuples of
                such tensors.

        Returns:
            The same structure, with the stored values bit for bit, on the device of `ids`. (Named tuples and
            subclasses of dict come back as plain tuples and dicts.)

        Raises:
            ValueError: tensors without one row for each sample, or of another shape, type or structure than before.
            TypeError: `ids` are not int64 [B], or the structure holds something else than tensors.
        """
        wanted = _checked_ids(ids)
        absent = self._absent(wanted)
        if any(number not in self._pending_ids for number in wanted[absent].tolist()):
            self.misses += len(wanted)
            computed = compute()
            self._store(wanted, computed)
            return computed
        if absent.any():
            self.flush()
        self.hits += len(wanted)
        return self._read(wanted, ids.device)

    def flush(self) -> None:
        """Write what is waiting as a new shard."""
        if not self._pending:
            return
        tensors = {name: torch.cat([leaves[name] for leaves in self._pending]) for name in self._pending[0]}
        self._pending, self._pending_ids, self._pending_bytes = [], set(), 0
        self.folder.mkdir(parents=True, exist_ok=True)
        name = f"shard-{time.time_ns():020d}-{secrets.token_hex(4)}.safetensors"  # no two processes take one name
        path, temporary = self.folder / name, self.folder / f".writing-{name}"
        try:
            save_file(tensors, temporary, {"key": self.key, "structure": json.dumps(self._structure)})
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        self._open(path)

    def __enter__(self) -> TeacherCache:
        return self

    def __exit__(self, *_: object) -> None:
        self.flush()

    def _absent(self, wanted: Tensor) -> np.ndarray:
        if not len(self._ids):
            return np.ones(len(wanted), bool)
        found = np.searchsorted(self._ids, wanted.numpy()).clip(max=len(self._ids) - 1)
        return self._ids[found] != wanted.numpy()

    def _store(self, wanted: Tensor, computed: Any) -> None:
        leaves: list[tuple[str, Tensor]] = []
        structure = _flatten(computed, "", leaves)
        for path, leaf in leaves:
            if leaf.ndim == 0 or len(leaf) != len(wanted):
                raise ValueError(
                    f"teacher output {path} has shape {list(leaf.shape)}; only tensors of {len(wanted)} rows, "
                    "one for each sample, can be cached"
                )
        if self._structure not in (None, structure):
            raise ValueError(f"teacher outputs were {self._structure} and are {structure}")
        self._structure = structure
        known = [*self._shards, *self._pending][:1]
        for number, (path, leaf) in enumerate(leaves):
            before = known[0][str(number)] if known else leaf
            if leaf.shape[1:] != before.shape[1:] or leaf.dtype != before.dtype:
                raise ValueError(
                    f"teacher output {path} was {before.dtype} {list(before.shape[1:])} a sample and is {leaf.dtype} "
                    f"{list(leaf.shape[1:])}; a cache needs inputs of one size"
                )
        absent, numbers = self._absent(wanted), wanted.tolist()
        first = {number: row for row, number in reversed(list(enumerate(numbers)))}
        rows = [row for number, row in first.items() if absent[row] and number not in self._pending_ids]
        kept = {str(number): leaf.detach().cpu()[rows].contiguous() for number, (_, leaf) in enumerate(leaves)}
        self._pending.append({"ids": wanted[rows], **kept})
        self._pending_ids.update(numbers[row] for row in rows)
        self._pending_bytes += sum(leaf.nbytes for leaf in kept.values())
        if self._pending_bytes >= self.shard_bytes:
            self.flush()

    def _read(self, wanted: Tensor, device: torch.device) -> Any:
        places = self._places[np.searchsorted(self._ids, wanted.numpy())]
        shards, rows = places >> 32, torch.from_numpy(places & 0xFFFFFFFF)
        leaves = []
        for number in range(len(self._shards[0]) - 1):
            first = self._shards[0][str(number)]
            leaf = first.new_empty((len(wanted), *first.shape[1:]))
            for shard in np.unique(shards):
                here = torch.from_numpy(np.flatnonzero(shards == shard))
                leaf[here] = self._shards[shard][str(number)][rows[here]]
            leaves.append(leaf.to(device))
        return _unflatten(self._structure, leaves)

    def _open(self, path: Path) -> None:
        """Map a shard and add its samples; a damaged one is removed."""
        try:
            tensors, structure = _mapped(path, self.key)
            before = self._shards[0] if self._shards else tensors
            if _layout(tensors) != _layout(before) or self._structure not in (None, structure):
                raise ValueError("its tensors differ from those of the other shards")
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            warnings.warn(
                f"{path} is damaged ({error}); it is removed and its samples are computed again", stacklevel=3
            )
            path.unlink(missing_ok=True)
            return
        ids = tensors["ids"].numpy()
        places = (np.int64(len(self._shards)) << 32) + np.arange(len(ids), dtype=np.int64)
        self._structure = structure
        # the first place of an id counts: two processes may have stored the same sample
        self._ids, first = np.unique(np.concatenate([self._ids, ids]), return_index=True)
        self._places = np.concatenate([self._places, places])[first]
        self._shards.append(tensors)


def cache_key(teacher: nn.Module, data: Batches, what: str = "") -> str:
    """The key of a teacher's outputs: of its weights and structure, of the data with its transform, and of `what`.

    A change of any weight or statistic, of a module, of the transform, of the number of samples or of the first ones
    gives another key. The code of a module's ``forward`` is not seen.

    Args:
        teacher: in evaluation mode, without gradients.
        data: batches whose transform gives a sample the same values each time it is drawn.
        what: which outputs, for example the paths of the hooked modules.

    Raises:
        ValueError: a teacher that is trained or in training mode; a transform or dataset that is random.
    """
    return _digest("flambeau teacher cache 1", teacher_digest(teacher), data_digest(data), what).hexdigest()


def teacher_digest(teacher: nn.Module) -> str:
    """SHA-256 of a teacher's structure, parameters and buffers.

    Raises:
        ValueError: a parameter requires a gradient, or a module is in training mode.
    """
    trained = [name for name, parameter in teacher.named_parameters() if parameter.requires_grad]
    if trained:
        raise ValueError(
            f"teacher: {trained[0]} and {len(trained) - 1} more parameters require gradients; the outputs of a teacher "
            "that is trained cannot be cached (requires_grad: False, or teacher.requires_grad_(False))"
        )
    training = [name for name, module in teacher.named_modules() if module.training]
    if training:
        raise ValueError(f"teacher: {training[0] or 'it'} is in training mode; call teacher.eval() before caching")
    digest = _digest(repr(teacher))
    for name, tensor in [*teacher.named_parameters(), *teacher.named_buffers()]:
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def data_digest(data: Batches) -> str:
    """SHA-256 of the number of samples, of the transform, and of the first 64 transformed samples.

    Raises:
        ValueError: two draws of the same samples differ, so that stored outputs would belong to other inputs.
        TypeError: data that is not ``Batches``.
    """
    if not isinstance(data, Batches):
        raise TypeError(f"data: expected Batches, whose transform can be examined, got {type(data).__name__}")
    transform = data.transform
    draws = []
    for attempt in range(2):
        batch = next(iter(data.all(min(PROBED, data.samples))))
        if transform is not None:
            batch = transform(batch, torch.Generator().manual_seed(attempt))
        leaves: list[tuple[str, Tensor]] = []
        _flatten(batch, "", leaves)
        digest = _digest(data.samples, json.dumps(describe(transform), sort_keys=True))
        for _, leaf in leaves:
            digest.update(_bytes(leaf))
        draws.append(digest.hexdigest())
    if draws[0] != draws[1]:
        raise ValueError(
            "transform: the same samples came out differently twice, so a teacher's stored outputs would not belong to "
            "what the student sees; wrap it in PerSample(transform, augment_seed=...), or set augment_seed in the "
            "configuration, which fixes the random numbers by sample"
        )
    return draws[0]


def _mapped(path: Path, key: str) -> tuple[dict[str, Tensor], Any]:
    """The tensors of a shard, mapped rather than read, and their structure."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        if metadata.get("key") != key:
            raise ValueError("it belongs to another teacher, transform or set of outputs")
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    ids, structure = tensors["ids"], json.loads(metadata["structure"])
    if ids.dtype != torch.int64 or ids.ndim != 1 or any(t.ndim == 0 or len(t) != len(ids) for t in tensors.values()):
        raise ValueError("its tensors do not have one row for each sample")
    _unflatten(structure, [tensors[str(number)] for number in range(len(tensors) - 1)])
    return tensors, structure


def _layout(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    return {name: (tensor.dtype, tensor.shape[1:]) for name, tensor in tensors.items()}


def _flatten(value: Any, path: str, leaves: list[tuple[str, Tensor]]) -> Any:
    """Collect the tensors of nested dicts, lists and tuples; returns the structure as JSON, a tensor as its number."""
    if isinstance(value, Tensor):
        leaves.append((path or "itself", value))
        return len(leaves) - 1
    if isinstance(value, Mapping):
        return {"dict": {str(key): _flatten(item, f"{path}/{key}", leaves) for key, item in value.items()}}
    if isinstance(value, (list, tuple)):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_flatten(item, f"{path}/{number}", leaves) for number, item in enumerate(value)]}
    raise TypeError(f"{path or 'the output'}: expected tensors in dicts, lists and tuples, got {type(value).__name__}")


def _unflatten(structure: Any, leaves: list[Tensor]) -> Any:
    if isinstance(structure, int):
        return leaves[structure]
    (kind, items), *more = structure.items()
    if more or kind not in ("dict", "list", "tuple"):
        raise ValueError(f"the structure of its tensors is malformed: {structure}")
    if kind == "dict":
        return {key: _unflatten(item, leaves) for key, item in items.items()}
    built = [_unflatten(item, leaves) for item in items]
    return built if kind == "list" else tuple(built)


def _checked_ids(ids: Tensor) -> Tensor:
    if not isinstance(ids, Tensor) or ids.dtype != torch.int64 or ids.ndim != 1:
        got = f"{ids.dtype} {list(ids.shape)}" if isinstance(ids, Tensor) else type(ids).__name__
        raise TypeError(f"ids: expected the samples' numbers, int64 [B], got {got}")
    if len(ids) and int(ids.min()) < 0:
        raise ValueError(f"ids must not be negative, got {int(ids.min())}")
    return ids.detach().cpu()


def _digest(*parts: Any) -> Any:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(f"{part}\x1f".encode())
    return digest


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
