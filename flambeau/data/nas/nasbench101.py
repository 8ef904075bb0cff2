"""Reads the files of NAS-Bench-101 (Ying et al. 2019), `nasbench_full.tfrecord` and `nasbench_only108.tfrecord`.

TensorFlow is not needed: a TFRecord is a length, its checksum, the data and its checksum; the data is a JSON list
`[hash, epochs, adjacency, operations, metrics]`, whose metrics are a base64 protocol buffer (`model_metrics.proto`).
"""

from __future__ import annotations

import base64
import json
import struct
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from flambeau.data.nas.nasbench import Cell, NasBench, write_table

MAX_RECORD = 1 << 20  # bytes; real records have about a thousand
NAMES = {"conv3x3-bn-relu": "conv3x3", "conv1x1-bn-relu": "conv1x1", "maxpool3x3": "maxpool3x3"}


def load_nasbench101(path: Path | str, cache: Path | str | None = None) -> NasBench:
    """The table of a `.tfrecord` file; budgets are epochs, seeds the repeated trainings.

    Reading the full file (423,624 cells) takes minutes and some GB of memory, once: the result is kept in `cache`, by
    default next to the file with the ending `.npz`. Cells without all epochs and repeats are left out.

    Raises:
        ValueError: not such a file, or damaged; the message says at which byte.
    """
    path = Path(path)
    cache = path.with_suffix(".npz") if cache is None else Path(cache)
    if not cache.exists() or cache.stat().st_mtime < path.stat().st_mtime:
        convert(path, cache)
    return NasBench(cache)


def convert(path: Path, cache: Path) -> None:
    cells: dict[str, Cell] = {}
    found: dict[str, dict[int, list[tuple[float, float, float]]]] = defaultdict(lambda: defaultdict(list))
    for key, epochs, adjacency, operations, metrics in records(path):
        if key not in cells:
            cells[key] = _cell(adjacency, operations)
        found[key][epochs].append(final_metrics(base64.b64decode(metrics)))
    budgets = sorted({epochs for by_epochs in found.values() for epochs in by_epochs})
    repeats = max((len(runs) for by_epochs in found.values() for runs in by_epochs.values()), default=0)
    whole = [key for key, by in found.items() if all(len(by.get(epochs, ())) == repeats for epochs in budgets)]
    if not whole:
        raise ValueError(f"{path}: no cell with results at all of {budgets} epochs")
    values = np.array([[found[key][epochs] for epochs in budgets] for key in whole])  # [cells, budgets, repeats, 3]
    accuracy = values[..., 1:].transpose(0, 3, 1, 2)
    write_table(cache, [cells[key] for key in whole], accuracy, values[..., 0], budgets)


def records(path: Path) -> Iterator[tuple[str, int, str, str, str]]:
    """The JSON rows of the file."""
    size = path.stat().st_size
    with path.open("rb") as file:
        while header := file.read(12):
            at = file.tell() - len(header)
            if len(header) < 12:
                raise ValueError(f"{path}: damaged at byte {at}: the file ends inside a record")
            length, checksum = struct.unpack("<QI", header)
            if masked_crc32c(header[:8]) != checksum:
                raise ValueError(f"{path}: damaged at byte {at}, or not a TFRecord file")
            if length > min(MAX_RECORD, size - at - 16):
                raise ValueError(f"{path}: damaged at byte {at}: a record of {length} bytes")
            data = file.read(length)
            file.read(4)  # the data's checksum: the JSON and protocol buffer parsers notice damage sooner and faster
            try:
                key, epochs, adjacency, operations, metrics = json.loads(data)
                yield str(key), int(epochs), str(adjacency), str(operations), str(metrics)
            except (ValueError, TypeError) as error:
                raise ValueError(f"{path}: damaged at byte {at}: {error}") from error


def final_metrics(message: bytes) -> tuple[float, float, float]:
    """Seconds, validation and test accuracy of the last `EvaluationData` of a `ModelMetrics` message."""
    last = [value for field, value in fields(message) if field == 1]
    if not last or not isinstance(last[-1], bytes):
        raise ValueError("metrics: no evaluation in the message")
    values = dict(fields(last[-1]))
    doubles = [values.get(field) for field in (2, 4, 5)]
    if not all(isinstance(value, bytes) and len(value) == 8 for value in doubles):
        raise ValueError(f"metrics: expected numbers in the fields 2, 4 and 5, got fields {sorted(values)}")
    seconds, validation, test = struct.unpack("<ddd", b"".join(doubles))  # type: ignore[arg-type]
    return seconds, validation, test


def fields(message: bytes) -> Iterator[tuple[int, bytes | int]]:
    """Field number and raw value of each field of a protocol buffer message."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        field, kind = tag >> 3, tag & 7
        if kind == 0:
            value, at = _varint(message, at)
            yield field, value
            continue
        if kind == 2:
            length, at = _varint(message, at)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        else:
            raise ValueError(f"metrics: unknown wire type {kind}")
        if at + length > len(message):
            raise ValueError("metrics: the message ends inside a field")
        yield field, message[at : at + length]
        at += length


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 64, 7):
        if at >= len(message):
            break
        value |= (message[at] & 127) << shift
        at += 1
        if message[at - 1] < 128:
            return value, at
    raise ValueError("metrics: damaged number")


def _cell(adjacency: str, operations: str) -> Cell:
    n = round(len(adjacency) ** 0.5)
    rows = tuple(tuple(int(bit) for bit in adjacency[i * n : (i + 1) * n]) for i in range(n))
    inner = operations.split(",")[1:-1]
    unknown = [name for name in inner if name not in NAMES]
    if unknown:
        raise ValueError(f"operations: expected {list(NAMES)}, got {unknown[0]!r}")
    return Cell(rows, tuple(NAMES[name] for name in inner))


def _table() -> list[int]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return table


CRC32C = _table()


def masked_crc32c(data: bytes) -> int:
    """CRC-32C in the rotated form of the TFRecord format."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = CRC32C[(crc ^ byte) & 255] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
