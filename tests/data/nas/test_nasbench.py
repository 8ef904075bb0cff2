"""Cells and their hash, the shipped table, and the reader of NAS-Bench-101 files."""

import base64
import hashlib
import itertools
import json
import random
import struct
from collections import Counter

import numpy as np
import pytest

from flambeau.data.nas.nasbench import (
    OPERATIONS,
    Cell,
    DigitsNasBench,
    NasBench,
    digits_split,
    enumerate_cells,
    write_table,
)
from flambeau.data.nas.nasbench101 import load_nasbench101, masked_crc32c

CHAIN = Cell(((0, 1, 0), (0, 0, 1), (0, 0, 0)), ("conv3x3",))


def canonical(cell: Cell):
    """The smallest labelling over all orders of the inner vertices, by brute force."""
    n = len(cell.matrix)
    forms = []
    for inner in itertools.permutations(range(1, n - 1)):
        order = (0, *inner, n - 1)
        matrix = tuple(tuple(cell.matrix[i][j] for j in order) for i in order)
        forms.append((matrix, tuple(cell.operations[i - 1] for i in inner)))
    return min(forms)


def test_there_are_2532_cells_and_the_hash_never_merges_two():
    cells = list(enumerate_cells())
    assert Counter(len(cell.matrix) for cell in cells) == {2: 1, 3: 6, 4: 84, 5: 2441}
    assert len({canonical(cell) for cell in cells}) == 2532


def test_hash_is_invariant_to_the_order_of_inner_vertices():
    rng = random.Random(0)
    for _ in range(200):
        edges = [rng.randint(0, 1) for _ in range(10)]
        cell = Cell.from_edges(edges, [rng.choice(OPERATIONS) for _ in range(3)])
        if cell.pruned is None:
            continue
        same = [
            Cell(*form)
            for form in _relabelled(cell.pruned)
            if all(form[0][i][j] == 0 for i in range(len(form[0])) for j in range(i + 1))
        ]
        assert {other.key for other in same} == {cell.key}


def _relabelled(cell):
    n = len(cell.matrix)
    for inner in itertools.permutations(range(1, n - 1)):
        order = (0, *inner, n - 1)
        yield (
            tuple(tuple(cell.matrix[i][j] for j in order) for i in order),
            tuple(cell.operations[i - 1] for i in inner),
        )


def test_pruning_drops_what_is_on_no_path():
    dangling = Cell.from_edges([1, 1, 0, 0, 1, 0], ["conv3x3", "maxpool3x3"])  # 0->1, 0->2, 1->3; 2 leads nowhere
    assert dangling.pruned == CHAIN and dangling.key == CHAIN.key
    cut = Cell.from_edges([1, 0, 0], ["conv3x3"])
    assert cut.pruned is None
    with pytest.raises(ValueError, match="not connected"):
        assert cut.key


@pytest.mark.parametrize(
    "matrix, operations, said",
    [
        (((0, 1), (0,)), (), "square"),
        (((0, 1), (1, 0)), (), "above the diagonal"),
        (((0, 2), (0, 0)), (), "0/1"),
        (CHAIN.matrix, (), "expected 1"),
        (CHAIN.matrix, ("conv5x5",), "conv5x5"),
    ],
)
def test_bad_cells(matrix, operations, said):
    with pytest.raises(ValueError, match=said):
        Cell(matrix, operations)


def test_shipped_table_holds_every_cell():
    table = DigitsNasBench()
    assert len(table) == 2532 and all(cell in table for cell in enumerate_cells())
    assert table.budgets == (75, 150) and table.seeds == 3
    assert np.isfinite(table.accuracy).all() and (table.accuracy >= 0).all() and (table.accuracy <= 1).all()
    assert (table.seconds[:, 0] < table.seconds[:, 1]).all() and (table.seconds > 0).all()
    mean = table.validation()
    # Wide enough to search in: far from chance, and 3x3 convolutions help.
    assert mean.max() - np.median(mean) > 0.15
    convolutions = [cell.operations.count("conv3x3") for cell in table.cells]
    assert np.corrcoef(mean, convolutions)[0, 1] > 0.4
    assert np.corrcoef(mean, table.accuracy[:, 1, 1].mean(-1))[0, 1] > 0.95


def test_query():
    table = DigitsNasBench()
    one, mean = [table.query(CHAIN, seed=seed) for seed in range(3)], table.query(CHAIN)
    assert mean.validation == pytest.approx(np.mean([r.validation for r in one]))
    assert table.query(CHAIN, 75).seconds < mean.seconds
    with pytest.raises(ValueError, match=r"budget: expected one of \(75, 150\), got 100"):
        table.query(CHAIN, 100)
    with pytest.raises(ValueError, match="seed"):
        table.query(CHAIN, seed=3)
    with pytest.raises(ValueError, match="not in the table"):
        table.query(Cell.from_edges([1] * 10, ["conv3x3"] * 3))


def test_parts_of_the_digits_are_disjoint_and_complete():
    parts = digits_split()
    assert [len(labels) for _, labels in parts] == [900, 450, 447]
    assert sum(images.sum() for images, _ in parts) == pytest.approx(561718 / 16)


def test_table_round_trip_and_damage(tmp_path):
    path = tmp_path / "table.npz"
    write_table(path, [CHAIN], np.full((1, 2, 2, 3), 0.5), np.ones((1, 2, 3)), (1, 2))
    assert NasBench(path).query(CHAIN, 1, 2) == (0.5, 0.5, 1.0)
    assert [p.name for p in tmp_path.iterdir()] == ["table.npz"]
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="not a table"):
        NasBench(path)


# -- NAS-Bench-101 ---------------------------------------------------------------------------------------------------


def _field(number, kind, payload):
    return bytes([number << 3 | kind]) + payload


def _metrics(seconds, validation, test):
    def evaluation(epoch, *values):
        message = b"".join(_field(i, 1, struct.pack("<d", v)) for i, v in enumerate((epoch, *values), start=1))
        message += _field(6, 2, bytes([4]) + b"ckpt")
        return _field(1, 2, bytes([len(message)]) + message)

    start, end = evaluation(0, 0, 0.1, 0.1, 0.1), evaluation(108, seconds, 1.0, validation, test)
    return base64.b64encode(start + end + _field(2, 0, b"\x96\x01") + _field(3, 1, struct.pack("<d", 9.0))).decode()


def _record(data: bytes) -> bytes:
    length = struct.pack("<Q", len(data))
    return length + struct.pack("<I", masked_crc32c(length)) + data + struct.pack("<I", masked_crc32c(data))


def _write(path):
    rows = []
    for cell, adjacency, operations in [
        (CHAIN, "010001000", "input,conv3x3-bn-relu,output"),
        (Cell(((0, 1), (0, 0)), ()), "0100", "input,output"),
    ]:
        for epochs in (4, 108):
            for repeat in range(3):
                metrics = _metrics(epochs * 10.0, 0.8 + repeat / 100, 0.7)
                rows.append(json.dumps([cell.key, epochs, adjacency, operations, metrics]).encode())
    path.write_bytes(b"".join(map(_record, rows)))


def test_crc32c_of_the_standard_check_string():
    crc = 0xE3069283  # CRC-32C of "123456789" (RFC 3720)
    assert masked_crc32c(b"123456789") == ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def test_nasbench101_file(tmp_path):
    path = tmp_path / "nasbench.tfrecord"
    _write(path)
    table = load_nasbench101(path)
    assert table.budgets == (4, 108) and table.seeds == 3 and len(table) == 2
    assert table.query(CHAIN, 108, 2) == pytest.approx((0.82, 0.7, 1080.0))
    assert table.query(CHAIN, 4).seconds == 40.0
    assert len(NasBench(tmp_path / "nasbench.npz")) == 2  # the kept copy


def test_hash_of_the_single_edge_written_out():

    def md5(text):
        return hashlib.md5(text.encode()).hexdigest()

    a, b = md5(str((1, 0, -1))), md5(str((0, 1, -2)))
    for _ in range(2):
        a, b = md5("|" + b + "|" + a), md5(a + "||" + b)
    assert Cell(((0, 1), (0, 0)), ()).key == md5(str(sorted([a, b])))


@pytest.mark.parametrize("damage, said", [("cut", "damaged at byte"), ("text", "not a TFRecord"), ("json", "damaged")])
def test_damaged_nasbench101_files(tmp_path, damage, said):
    path = tmp_path / "nasbench.tfrecord"
    _write(path)
    content = path.read_bytes()
    path.write_bytes({"cut": content[:-40], "text": b"hello world, hello world", "json": _record(b"[1, 2")}[damage])
    with pytest.raises(ValueError, match=said):
        load_nasbench101(path)
    assert not (tmp_path / "nasbench.npz").exists()
