"""Reads the result files of NATS-Bench (Dong et al. 2021), which are pickles, without ever executing what is in them.

A pickle may call any function. These are read by a reader that knows containers, numbers and NumPy scalars and refuses
everything else: files of the "simple" kind (`NATS-tss-v1_0-3ffb9-simple/`, `NATS-sss-v1_0-50262-simple/`) hold nothing
else.
"""

from __future__ import annotations

import bz2
import io
import pickle
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from flambeau.data.nas.nasbench import Result

MAX_BYTES = 256 << 20  # of one file, decompressed; real ones have about a third of a megabyte


class NatsBench:
    """The networks of a folder, and what their trainings gave.

    Args:
        path: a folder `NATS-...-simple` with `meta.pickle.pbz2` and a `NNNNNN.pickle.pbz2` for each network.

    Attributes:
        architectures: the text of every network of the space, for instance `"|nor_conv_3x3~0|+|...|"`; its place in
            the list is the number of its file.

    Raises:
        ValueError: a file that is damaged, or holds something that only executing it could make.
        FileNotFoundError: no such folder or file.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        meta = read_plain_pickle(self.path / "meta.pickle.pbz2")
        names = meta.get("meta_archs") if isinstance(meta, Mapping) else None
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError(f"{self.path}: its meta file names no architectures")
        self.architectures: list[str] = names
        self.row = {name: i for i, name in enumerate(names)}

    def __len__(self) -> int:
        return len(self.architectures)

    def query(
        self, architecture: str | int, data: str = "cifar10-valid", epochs: str = "200", seed: int | None = None
    ) -> Result:
        """Validation and test accuracy (fractions) at the end of a training, and its seconds.

        Args:
            architecture: its text or number.
            data: "cifar10-valid", "cifar10", "cifar100" or "ImageNet16-120". Where there is no separate validation
                part ("cifar10"), validation is the test part.
            epochs: the training budget: "12" or "200", in the size space "01", "12" or "90".
            seed: of one training; None is the mean over all.

        Raises:
            ValueError: there is no such network, data, budget or seed; the message names those there are.
        """
        number = self.row.get(architecture) if isinstance(architecture, str) else architecture
        if number is None or not 0 <= number < len(self):
            raise ValueError(f"architecture: expected a text of the space or 0..{len(self) - 1}, got {architecture!r}")
        found = read_plain_pickle(self.path / f"{number:06d}.pickle.pbz2")
        runs = pick(pick(found, "epochs", epochs), None, "all_results")
        seeds = sorted(s for name, s in runs if name == data)
        if not seeds:
            raise ValueError(f"data: expected one of {sorted({name for name, _ in runs})}, got {data!r}")
        if seed is not None and seed not in seeds:
            raise ValueError(f"seed: expected one of {seeds}, got {seed}")
        return Result(*np.mean([outcome(runs[data, s]) for s in (seeds if seed is None else [seed])], axis=0).tolist())


def pick(found: Any, name: str | None, key: str) -> Any:
    """An entry of a dict in a file."""
    if isinstance(found, Mapping) and key in found:
        return found[key]
    known = sorted(map(str, found)) if isinstance(found, Mapping) else type(found).__name__
    raise ValueError(f"{name}: expected one of {known}, got {key!r}" if name else f"no {key!r} in the file: {known}")


def outcome(run: Any) -> tuple[float, float, float]:
    """Validation accuracy, test accuracy and seconds of one training."""
    last = int(pick(run, None, "epochs")) - 1
    accuracy, times = pick(run, None, "eval_acc1es"), pick(run, None, "train_times")
    parts = {name.rsplit("@", 1)[0]: value for name, value in accuracy.items() if name.endswith(f"@{last}")}
    test = parts.get("ori-test", parts.get("x-test"))
    valid = parts.get("x-valid", test)
    if test is None or valid is None:
        raise ValueError(f"no accuracies after {last + 1} epochs, got {sorted(accuracy)[:4]}")
    return float(valid) / 100, float(test) / 100, float(sum(times.values()))


def read_plain_pickle(path: Path) -> Any:
    """What a pickle, or one compressed by bz2 (`.pbz2`), holds: containers, text, numbers, NumPy scalars.

    Raises:
        ValueError: damaged, too large, or something else in it.
    """
    with path.open("rb") as file:
        try:
            content = (bz2.BZ2File(file) if path.suffix == ".pbz2" else file).read(MAX_BYTES + 1)
            if len(content) > MAX_BYTES:
                raise ValueError(f"more than {MAX_BYTES} bytes")
            return PlainUnpickler(io.BytesIO(content)).load()
        except FileNotFoundError:
            raise
        except Exception as error:  # damaged pickles raise nearly anything
            raise ValueError(f"{path}: not a whole file of plain values: {error}") from error


class PlainUnpickler(pickle.Unpickler):
    """Makes nothing but plain values."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in ALLOWED:
            return ALLOWED[module, name]
        hint = "it may hold weights; use the files of the kind NATS-...-simple, which hold results only"
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is not made from a file: {hint}")

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("it refers to something outside of it")


class PlainType:
    """Stands for a NumPy type of numbers while a file is read; the byte order comes afterwards, as state."""

    def __init__(self, code: Any, *ignored: Any) -> None:
        if not isinstance(code, str) or np.dtype(code).kind not in "biuf":
            raise pickle.UnpicklingError(f"it asks for values of type {code!r}")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) < 2 or state[1] not in ("<", ">", "|", "="):
            raise pickle.UnpicklingError(f"it asks for a type of state {state!r}")
        self.dtype = self.dtype.newbyteorder(state[1])


def plain_scalar(kind: Any, content: Any = b"") -> Any:
    """A NumPy scalar as a number of Python."""
    if not isinstance(kind, PlainType) or not isinstance(content, bytes):
        raise pickle.UnpicklingError(f"it asks for a scalar of {type(kind).__name__}")
    return np.frombuffer(content, kind.dtype, count=1)[0].item()


def plain_bytes(text: Any, encoding: Any = "latin1") -> bytes:
    """Bytes, which old pickles write as text."""
    if not isinstance(text, str) or encoding != "latin1":
        raise pickle.UnpicklingError(f"it asks for {type(text).__name__} in {encoding!r}")
    return text.encode("latin1")


ALLOWED: dict[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("numpy", "dtype"): PlainType,
    ("_codecs", "encode"): plain_bytes,
    ("numpy.core.multiarray", "scalar"): plain_scalar,
    ("numpy._core.multiarray", "scalar"): plain_scalar,
}
