import bz2
import io
import os
import pickle
from collections import OrderedDict

import numpy as np
import pytest

from flambeau.data.nas.nats_bench import NatsBench, read_plain_pickle

NAMES = ["|nor_conv_3x3~0|+|none~0|skip_connect~1|", "|none~0|+|none~0|avg_pool_3x3~1|"]


def training(valid, test, epochs=12):
    accuracy = {f"ori-test@{epochs - 1}": np.float64(test), f"x-valid@{epochs - 1}": valid, "x-valid@0": 9.0}
    times = OrderedDict((i, np.float32(2.5)) for i in range(epochs))
    return {"epochs": epochs, "eval_acc1es": accuracy, "train_times": times, "net_state_dict": None}


def write(path, value, protocol=4):
    path.write_bytes(bz2.compress(pickle.dumps(value, protocol)))


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "meta.pickle.pbz2", {"meta_archs": NAMES, "total_archs": 2, "evaluated_indexes": set()})
    runs = {("cifar10-valid", 777): training(80.0, 70.0), ("cifar10-valid", 888): training(90.0, 60.0)}
    runs |= {("cifar10", 777): {**training(0, 75.0), "eval_acc1es": {"ori-test@11": 75.0}}}
    write(tmp_path / "000001.pickle.pbz2", OrderedDict({"12": {"arch_str": NAMES[1], "all_results": runs}}), 2)
    return tmp_path


def test_reads_results(folder):
    table = NatsBench(folder)
    assert len(table) == 2 and table.architectures == NAMES
    assert table.query(NAMES[1], epochs="12", seed=888) == pytest.approx((0.9, 0.6, 30.0))
    assert table.query(1, epochs="12") == pytest.approx((0.85, 0.65, 30.0))
    assert table.query(1, "cifar10", "12").validation == table.query(1, "cifar10", "12").test == 0.75


def test_unknown_names_say_what_there_is(folder):
    table = NatsBench(folder)
    for arguments, said in [
        (("|none~0|",), "architecture"),
        ((2,), r"0..1, got 2"),
        ((1, "mnist", "12"), r"data: expected one of \['cifar10', 'cifar10-valid'\], got 'mnist'"),
        ((1, "cifar10", "200"), r"epochs: expected one of \['12'\], got '200'"),
        ((1, "cifar10", "12", 5), r"seed: expected one of \[777\], got 5"),
    ]:
        with pytest.raises(ValueError, match=said):
            table.query(*arguments)
    with pytest.raises(FileNotFoundError):
        table.query(0)


class Calls:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_nothing_is_executed(tmp_path, protocol):
    path, marker = tmp_path / "evil.pickle", tmp_path / "marker"
    for evil in [
        Calls(os.system, f"touch {marker}"),
        Calls(eval, "1"),
        np.array([Calls(os.system, f"touch {marker}")], object),
        np.arange(3.0),
        np.dtype([("a", "O")]),
        Calls(np.dtype, "O"),
        Calls(getattr, OrderedDict, "fromkeys"),
    ]:
        path.write_bytes(pickle.dumps([1, evil], protocol))
        with pytest.raises(ValueError, match=r"evil.pickle: not a whole file of plain values"):
            read_plain_pickle(path)
    assert not marker.exists()


def test_damage_and_size(tmp_path, monkeypatch, folder):
    whole = (folder / "000001.pickle.pbz2").read_bytes()
    for content in (whole[:-20], b"text", b""):
        (folder / "000001.pickle.pbz2").write_bytes(content)
        with pytest.raises(ValueError, match="000001.pickle.pbz2: not a whole file"):
            NatsBench(folder).query(1)
    monkeypatch.setattr("flambeau.data.nas.nats_bench.MAX_BYTES", 1000)
    write(tmp_path / "big.pbz2", "a" * 10_000)
    with pytest.raises(ValueError, match="more than 1000 bytes"):
        read_plain_pickle(tmp_path / "big.pbz2")
    stream = io.BytesIO()
    pickler = pickle.Pickler(stream)
    pickler.persistent_id = lambda value: "x" if value == "outside" else None
    pickler.dump(["outside"])
    (tmp_path / "outside.pickle").write_bytes(stream.getvalue())
    with pytest.raises(ValueError, match="refers to something outside"):
        read_plain_pickle(tmp_path / "outside.pickle")
    write(folder / "meta.pickle.pbz2", {"other": 1})
    with pytest.raises(ValueError, match="names no architectures"):
        NatsBench(folder)
