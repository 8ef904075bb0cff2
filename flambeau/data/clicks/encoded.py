"""A click log as tensors: fitted and encoded in two passes of bounded memory, then mapped from files."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from flambeau.data.clicks.fields import Columns, FieldSchema
from flambeau.data.clicks.logs import Chunk, ClickLog, split_parts

PARTS = ("train", "validation", "test")
TYPES = {"ids": torch.int32, "values": torch.float32, "labels": torch.float32}


class ClickRows(NamedTuple):
    """Encoded rows and their labels (0 or 1); the tensors may be mapped from files."""

    ids: Int[Tensor, "rows slots"]
    values: Float[Tensor, "rows slots"]
    labels: Float[Tensor, " rows"]


@dataclass(frozen=True)
class ClickData:
    """Fields fitted to the training rows, and three disjoint parts of the rows."""

    schema: FieldSchema
    train: ClickRows
    validation: ClickRows
    test: ClickRows


def encode_log(log: ClickLog, folder: str | Path, *, schema: FieldSchema | None = None, seed: int = 0) -> ClickData:
    """Split a log 80 : 10 : 10, fit its fields to the training rows alone, and write all rows to `folder`.

    Memory holds one chunk and the vocabularies; the tensors returned are mapped from the files, 8 bytes a slot. What
    was in `folder` is replaced when everything is written.

    Args:
        schema: fields that are fitted already.
        seed: which split, see :func:`~flambeau.data.clicks.logs.split_parts`.

    Raises:
        ValueError: a part without rows, and whatever is wrong with the log.
    """
    folder = Path(folder)
    if schema is None:
        schema = FieldSchema.fit(_training_columns(log, seed), log.fields)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        counts = dict.fromkeys(PARTS, 0)
        with ExitStack() as stack:
            files = {
                (part, name): stack.enter_context((temporary / f"{part}-{name}.bin").open("wb"))
                for part in PARTS
                for name in TYPES
            }
            for chunk, tenth in split_parts(log, seed=seed):
                ids, values = schema.encode(chunk.columns)
                rows = {"ids": ids, "values": values, "labels": torch.from_numpy(chunk.labels)}
                for part, chosen in zip(PARTS, (tenth > 1, tenth == 1, tenth == 0)):
                    counts[part] += int(chosen.sum())
                    for name, tensor in rows.items():
                        files[part, name].write(tensor.to(TYPES[name]).numpy()[chosen].tobytes())
        for part, count in counts.items():
            if not count:
                raise ValueError(f"the {part} part has no rows: {sum(counts.values())} rows are too few")
        schema.save(temporary / "schema.json")
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return ClickData(schema, *[_mapped(folder, part, counts[part], sum(schema.slots)) for part in PARTS])


def _training_columns(log: ClickLog, seed: int) -> Iterator[Columns]:
    for chunk, tenth in split_parts(log, seed=seed):
        if (tenth > 1).any():
            yield _chosen(chunk, tenth > 1)


def _chosen(chunk: Chunk, rows: np.ndarray) -> Columns:
    places = np.flatnonzero(rows).tolist()
    return {name: [cells[place] for place in places] for name, cells in chunk.columns.items()}


def _mapped(folder: Path, part: str, rows: int, slots: int) -> ClickRows:
    """Private mappings: the tensors can be written to, the files stay."""
    found = {}
    for name, dtype in TYPES.items():
        size = rows * (1 if name == "labels" else slots)
        flat = torch.from_file(str(folder / f"{part}-{name}.bin"), shared=False, size=size, dtype=dtype)
        found[name] = flat if name == "labels" else flat.view(rows, slots)
    return ClickRows(**found)
