import pickle
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from pickled_by_python2 import array, number, pickled, string

from flambeau.data.images.public.plain_pickle import read_plain_pickle


def written(tmp_path, content):
    path = tmp_path / "batch"
    path.write_bytes(content)
    return path


def test_a_dict_as_python_2_wrote_it(tmp_path):
    pixels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    content = pickled({b"data": pixels, b"labels": [1, 2, 300], b"batch_label": b"training batch 1 of 5"})
    read = read_plain_pickle(written(tmp_path, content))
    assert read[b"labels"] == [1, 2, 300] and read[b"batch_label"] == b"training batch 1 of 5"
    np.testing.assert_array_equal(read[b"data"], pixels)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4])
def test_what_python_3_and_this_numpy_write(tmp_path, protocol):
    value = {
        b"data": np.random.default_rng(0).integers(0, 256, (4, 5), np.uint8),
        b"labels": [3, 70000],
        b"n": b"\xff\0",
    }
    read = read_plain_pickle(written(tmp_path, pickle.dumps(value, protocol=protocol)))
    np.testing.assert_array_equal(read[b"data"], value[b"data"])
    assert read[b"labels"] == value[b"labels"] and read[b"n"] == value[b"n"]
    column_major = {b"data": np.asfortranarray(value[b"data"])}
    read = read_plain_pickle(written(tmp_path, pickle.dumps(column_major, protocol=protocol)))
    np.testing.assert_array_equal(read[b"data"], value[b"data"])


class Runs:
    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def test_nothing_is_run_or_imported(tmp_path):
    target = tmp_path / "made"
    for value in (Runs(target.mkdir), Runs(eval, f"open({str(target)!r}, 'w')"), Runs(__import__, "antigravity")):
        for protocol in range(5):
            with pytest.raises(ValueError, match="no pickle of plain data: it names"):
                read_plain_pickle(written(tmp_path, pickle.dumps(value, protocol=protocol)))
    assert not target.exists()


def test_the_stand_ins_cannot_be_changed(tmp_path):
    build = b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n}(" + string("array") + number(1) + b"ub."
    with pytest.raises(ValueError, match="it changes a type"):
        read_plain_pickle(written(tmp_path, build))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no whole pickle"),
        (pickled({b"labels": [1, 2]})[:-4], "no whole pickle"),
        (b"\x80\x02\x96" + (1 << 40).to_bytes(8, "little") + b".", "no whole pickle"),  # bytes of 1 TB
        (b"\x80\x02T\xff\xff\xff\x7fabc.", "no whole pickle"),  # a string of 2 GB
        (b"\x80\x02}r\xff\xff\xff\xff.", None),  # a memo index of 2^32
        (b"\x80\x02" + array(np.zeros(4, np.uint8)).replace(b"U\x02u1", b"U\x02O8") + b".", "array of b'O8'"),
        (
            b"\x80\x02" + array(np.zeros(4, np.uint8)).replace(b"K\x04\x85", b"K\x05\x85") + b".",
            "does not fill its shape",
        ),
        (pickle.dumps({"x": np.zeros(3)}), "array of 'f8'"),
        (pickle.dumps({1, 2}, protocol=4), "no whole pickle"),
        (b"garbage", "no whole pickle"),
    ],
)
def test_bad_input(tmp_path, content, message):
    path = written(tmp_path, content)
    if message is None:
        assert read_plain_pickle(path) == {}
        return
    with pytest.raises(ValueError, match=f"batch is .*{message}"):
        read_plain_pickle(path)


def test_missing_and_large_files(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="batch is missing"):
        read_plain_pickle(tmp_path / "batch")
    monkeypatch.setattr("flambeau.data.images.public.plain_pickle.MAX_BYTES", 3)
    with pytest.raises(ValueError, match="at most 3 are read"):
        read_plain_pickle(written(tmp_path, b"1234"))
