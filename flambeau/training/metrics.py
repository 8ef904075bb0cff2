"""The history of a training: kept in memory, appended to ``metrics.jsonl``, thinned for TensorBoard."""

from __future__ import annotations

import json
import math
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

POINTS = 250  # that TensorBoard gets of each training value, besides evaluations: each costs about 50 microseconds


class History:
    """One entry a step, ``{"step": 1, "loss": ..., "lr": ..., ...}``; evaluations add their values to the step's entry.

    Args:
        folder: where ``metrics.jsonl`` and ``tensorboard/`` go; None keeps the history in memory only.
        total: steps of the whole training.
    """

    def __init__(self, folder: Path | None, total: int):
        self.entries: list[dict[str, Any]] = []
        self.path = None if folder is None else folder / "metrics.jsonl"
        self.thinning = max(1, total // POINTS)
        self._written = 0
        self._bytes = 0
        self._evaluated: set[int] = set()
        self._board: Any = None

    def add(self, step: int, values: dict[str, float]) -> None:
        """The training values of a step."""
        self.entries.append({"step": step, **values})

    def add_evaluation(self, values: dict[str, float]) -> None:
        """An evaluation after the last step; names that training uses too get the prefix ``eval_``."""
        entry = self.entries[-1]
        entry.update({f"eval_{name}" if name in entry else name: value for name, value in values.items()})
        self._evaluated.add(entry["step"])

    def resume(self, entries: int, size: int) -> None:
        """Go back to the first `entries` entries, which are `size` bytes of the file.

        Raises:
            ValueError: the file does not begin with so many whole entries.
        """
        if self.path is None or not size:
            return
        with self.path.open("rb") as file:
            text = file.read(size)
        self.entries = [_from_json(line) for line in text.splitlines()]
        if len(text) != size or len(self.entries) != entries:
            raise ValueError(f"{self.path} should begin with {entries} entries in {size} bytes")
        os.truncate(self.path, size)
        self._written, self._bytes = entries, size

    def start(self) -> None:
        """Open the files for writing; entries after the point of resumption are dropped."""
        if self.path is None:
            return
        from torch.utils.tensorboard import SummaryWriter

        self.path.parent.mkdir(parents=True, exist_ok=True)
        if not self._written:
            self.path.write_bytes(b"")
        step = self.entries[-1]["step"] if self.entries else 0
        self._board = SummaryWriter(str(self.path.parent / "tensorboard"), purge_step=step + 1)

    def write(self) -> tuple[int, int]:
        """Append the new entries to the files, synced; returns how many entries and bytes the file now holds."""
        if self.path is None or self._written == len(self.entries):
            return self._written, self._bytes
        new = self.entries[self._written :]
        with self.path.open("r+b") as file:
            file.seek(self._bytes)  # not the end: a write that failed half way may have left part of a line
            file.write("".join(_to_json(entry) + "\n" for entry in new).encode())
            file.truncate()
            file.flush()
            os.fsync(file.fileno())
            self._bytes = file.tell()
        for entry in new:
            step = entry["step"]
            if step % self.thinning == 0 or step in self._evaluated:
                for name, value in entry.items():
                    if name != "step":
                        self._board.add_scalar(name, value, step)
        self._evaluated.clear()
        self._written = len(self.entries)
        return self._written, self._bytes

    def close(self) -> None:
        """Close the files."""
        if self._board is not None:
            with suppress(OSError):  # of a full disk, which the checkpoint that failed has already told of
                self._board.close()


def _to_json(entry: dict[str, Any]) -> str:
    """One line; infinities and NaN, which JSON does not have, become the strings "inf", "-inf" and "nan"."""
    finite = {name: value if math.isfinite(value) else str(value) for name, value in entry.items()}
    return json.dumps(finite, allow_nan=False)


def _from_json(line: bytes) -> dict[str, Any]:
    return {name: float(value) if isinstance(value, str) else value for name, value in json.loads(line).items()}
