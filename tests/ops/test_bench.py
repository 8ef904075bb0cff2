import pytest
import torch

from flambeau.ops import bench, build
from flambeau.ops.flashrnn import benchmark


def test_interleaved_takes_turns_and_keeps_the_best():
    calls = []
    timings = bench.interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, repeats=3)
    assert calls == ["a", "b"] * 4  # one unmeasured turn
    assert set(timings) == {"a", "b"} and all(0 <= t.wall < 1 for t in timings.values())
    with pytest.raises(ValueError, match="repeats is 0"):
        bench.interleaved({}, repeats=0)


def test_rows_of_the_bench(monkeypatch):
    small = benchmark.cases([(1, 4, 1, 8), (2, 3, 2, 8)])
    monkeypatch.setattr(benchmark, "cases", lambda: small)
    rows = bench.bench(["flashrnn"], repeats=1)
    assert [row["computed by"] for row in rows] == ["flashrnn", "step loop", "flashrnn", "torch.nn.LSTM"] + [
        "flashrnn", "step loop",
    ]  # fmt: skip
    assert all(row["isa"] == build.instruction_set() and row["threads"] == 1 for row in rows)
    assert all(row["floor_ms"] > 0 for row in rows) and rows[0]["ratio"] == 1
    with pytest.raises(ValueError, match="no benchmark for 'flashcnn'; there are .*flashrnn"):
        bench.bench(["flashcnn"])


def test_the_ways_compared_compute_the_same():
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(s, generator=generator) for s in [(2, 6, 4, 3, 8), (4, 3, 8, 8), (4, 3, 8)]]
    states = benchmark.flashrnn(*inputs)[0]
    torch.testing.assert_close(benchmark.step_loop(*inputs), states[0], atol=1e-5, rtol=1e-5)
