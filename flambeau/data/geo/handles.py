"""Open raster files, the least recently used closed first."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import rasterio


class Handles:
    """At most `size` open files. Safe to fork and to pickle: each process opens its own.

    A GDAL handle shared by two processes shares their file offset, so a child leaves its parent's handles alone
    (it neither uses nor closes them). One thread reads at a time.

    Raises:
        ValueError: a negative size.
    """

    def __init__(self, size: int = 128):
        if size < 0:
            raise ValueError(f"cache must be 0 or a number of open files, got {size}")
        self.size = size
        self._reset()

    def _reset(self) -> None:
        self._process = os.getpid()
        self._lock = threading.RLock()
        self._open: OrderedDict[str, Any] = OrderedDict()

    def __len__(self) -> int:
        return len(self._open) if self._process == os.getpid() else 0

    @contextmanager
    def open(self, path: str) -> Iterator[Any]:
        """The open rasterio dataset of a path, for the length of the block."""
        if self._process != os.getpid():
            _inherited.append(self._open)  # kept from being collected, which would close the parent's files
            self._reset()
        with self._lock:
            if self.size == 0:
                with rasterio.open(path) as source:
                    yield source
                return
            if path not in self._open:
                while len(self._open) >= self.size:
                    self._open.popitem(last=False)[1].close()
                self._open[path] = rasterio.open(path)
            self._open.move_to_end(path)
            try:
                yield self._open[path]
            except BaseException:
                self._open.pop(path).close()  # what failed once is opened anew
                raise

    def close(self) -> None:
        """Close all files of this process."""
        if self._process == os.getpid():
            with self._lock:
                while self._open:
                    self._open.popitem()[1].close()

    def __getstate__(self) -> dict[str, Any]:
        return {"size": self.size}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.size = state["size"]
        self._reset()


_inherited: list[Any] = []
