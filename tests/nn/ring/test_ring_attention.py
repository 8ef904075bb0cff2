"""Ring attention equals whole attention, forward and backward, and costs what its formulas say."""

import itertools
import sys
from functools import cache
from pathlib import Path

import pytest
import torch

from flambeau.nn.linformer import linformer_attention
from flambeau.nn.ring import Loopback, Route, SequenceLayout, Visibility, ring_attention, split_positions
from flambeau.nn.ring.problem import Problem
from flambeau.ops.saved_tensors import SavedTensors
from flambeau.training.parallel import run_processes

sys.path.insert(0, str(Path(__file__).parent))
import ring_workers

NAMES = ("parity", "shapes", "traffic", "memory", "dropout", "linformer")
SIZES = {
    2: (*NAMES, "memory_policies", "mistakes"),
    3: NAMES,
    4: ("parity", "traffic", "memory", "compositions"),
}


@cache
def all_sizes():
    return run_processes(ring_workers.everything, max(SIZES), SIZES)


def ring(ranks):
    """What each of so many ranks found; all numbers of ranks share one start of the processes."""
    return [result[ranks] for result in all_sizes()[:ranks]]


def worst(results, name):
    assert all(result[name].keys() == results[0][name].keys() for result in results)
    return {case: max(result[name][case] for result in results) for case in results[0][name]}


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_equal_to_whole_attention(ranks):
    results = ring(ranks)
    cases = worst(results, "parity")
    assert len(cases) == (54 if ranks != 3 else 40)
    assert {case: error for case, error in cases.items() if not error <= 1e-12} == {}


@pytest.mark.parametrize("ranks", [2, 3])
def test_shapes_precisions_and_extremes(ranks):
    results = ring(ranks)
    limits = {"torch.float32": 2e-6, "torch.bfloat16": 2e-2}
    cases = worst(results, "shapes")
    assert len(cases) == (28 if ranks != 3 else 26)
    bad = {case: error for case, error in cases.items() if not error <= limits.get(case.split(",")[0], 1e-12)}
    assert bad == {}


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_bytes_sent(ranks):
    results = ring(ranks)
    for result in results:
        for case, (forward, backward, expected_forward, expected_backward) in result["traffic"].items():
            assert (forward, backward) == (expected_forward, expected_backward), case


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_saved_bytes_of_a_rank(ranks):
    results = ring(ranks)
    for result in results:
        for mode in ("blockwise", "two_phase"):
            real, loop = result["memory"][f"{mode}, ProcessGroup"], result["memory"][f"{mode}, Loopback"]
            assert real == loop
        batch, heads, chunk, dim = 2, 4, 16, 8
        inputs = 3 * batch * heads * chunk * dim * 4
        assert result["memory"]["two_phase, Loopback"] == inputs + batch * heads * chunk * chunk * ranks * 4
        assert result["memory"]["blockwise, Loopback"] == inputs + batch * heads * chunk * (dim + 1) * 4


@pytest.mark.parametrize("ranks", [2, 3])
def test_dropout_masks(ranks):
    results = ring(ranks)
    for mode in results[0]["dropout"]["masks"]:
        masks = torch.stack([result["dropout"]["masks"][mode] for result in results])
        count = masks.numel()
        assert abs(masks.mean().item() - 0.7) < 3 * (0.21 / count) ** 0.5
        samples = masks[0].numel()
        for one, other in itertools.combinations(masks.flatten(1), 2):
            agree = (one == other).double().mean().item()
            assert abs(agree - 0.58) < 4 * (0.58 * 0.42 / samples) ** 0.5
    assert max(worst([r["dropout"] for r in results], "derivatives").values()) < 1e-7


@pytest.mark.parametrize("ranks", [2, 3])
def test_linformer_over_ranks(ranks):
    results = ring(ranks)
    cases = worst(results, "linformer")
    for result in results:
        found = list(result["linformer"].values())
        assert all(error <= 1e-12 for error, _, _ in found)
        # the same bytes at every length, all of them in the two sums
        assert len({reduced for _, reduced, _ in found}) == 1
        assert all(reduced == total == 2 * (2 * 2 * 4 * 5 * 8) * 8 for _, reduced, total in found)
    assert len(cases) == 3


def test_rings_of_machines_and_of_ulysses_groups():
    cases = worst(ring(4), "compositions")
    assert len(cases) == 4 and max(cases.values()) <= 1e-12


def test_recomputation_and_offload():
    assert all(result["memory_policies"] == [True, True] for result in ring(2))


def test_errors_that_need_several_ranks():
    for result in ring(2):
        sizes, positions, heads = result["mistakes"]
        assert "same tokens, got [4, 5]" in sizes
        assert "same positions=None" in positions
        assert "3 heads" in heads and "2 ranks" in heads


def test_one_rank_gives_the_same_numbers():
    tensors = ring_workers.inputs(12)
    row, column = ring_workers.positions_of(12)
    expected = ring_workers.reference(tensors, row >= column)
    shuffled = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    for mode in ("blockwise", "two_phase", "ulysses"):
        for order in (torch.arange(12), shuffled):
            *leaves, gradient = [t[:, :, order].clone() for t in tensors]
            leaves = [t.requires_grad_() for t in leaves]
            out = ring_attention(*leaves, None, causal=True, positions=order, mode=mode)
            for ours, theirs in zip((out, *torch.autograd.grad(out, leaves, gradient)), expected, strict=True):
                assert (ours - theirs[:, :, order]).abs().max() <= 1e-12


def test_many_tiles_equal_one(monkeypatch):
    """Tiles inside of a chunk change nothing, with padding and a window over their borders."""
    tensors = ring_workers.inputs(200)
    options = dict(lengths=torch.tensor([150, 199]), window=90, causal=True)
    visible = (torch.arange(200) < options["lengths"][:, None])[:, None, None]
    row, column = ring_workers.positions_of(200)
    expected = ring_workers.reference(tensors, visible & (row >= column) & (row - column < 90))
    monkeypatch.setattr("flambeau.nn.ring.problem.TILE_ELEMENTS", 1)
    leaves = [t.requires_grad_() for t in tensors[:3]]
    out = ring_attention(*leaves, None, **options)
    for ours, theirs in zip((out, *torch.autograd.grad(out, leaves, tensors[3])), expected, strict=True):
        assert (ours - theirs).abs().max() <= 1e-12


def test_saved_bytes_fall_with_the_ranks():
    """A sequence over twice as many ranks: half the saved bytes blockwise."""
    found = {}
    for mode in ("blockwise", "two_phase"):
        for ranks in (2, 4, 8):
            q, k, v, _ = ring_workers.inputs(256 // ranks, dtype=torch.float32)
            with SavedTensors() as saved:
                ring_attention(*[t.requires_grad_() for t in (q, k, v)], Loopback(ranks), mode=mode)
            found[mode, ranks] = saved.bytes
        assert found[mode, 2] / found[mode, 4] == pytest.approx(2, rel=0.05)
        assert found[mode, 4] / found[mode, 8] == pytest.approx(2, rel=0.05)


@pytest.mark.parametrize("ranks", [2, 3, 4, 5])
def test_zigzag_evens_out_causal_work(ranks):
    def pairs(balance):
        table = split_positions(ranks * 10, ranks, balance)
        every = torch.arange(ranks * 10)
        return [float((row[:, None] > every).sum() + len(row) / 2) for row in table]  # half of each diagonal pair

    even, plain = pairs("zigzag"), pairs("none")
    assert max(even) == min(even)
    assert max(plain) / min(plain) == 2 * ranks - 1
    for balance in ("none", "zigzag"):
        table = split_positions(ranks * 7 - 1, ranks, balance)
        assert sorted(table.flatten().tolist()) == list(range(table.numel()))
        assert table.numel() - (ranks * 7 - 1) < 2 * ranks


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_future_blocks_are_not_computed(ranks):
    """Zigzag evens out what is computed under a causal mask, not only what is visible: the future is skipped."""
    queries = torch.zeros(1, 1, 1, 2 * 64, 4)
    computed = {}
    for balance in ("none", "zigzag"):
        layout = SequenceLayout.split(ranks * 2 * 64, ranks, balance)
        for rank in range(ranks):
            problem = Problem(Loopback(ranks, rank), Route.ring(ranks), layout, Visibility(causal=True), 1.0)
            tiles = [tile for owner in range(ranks) for tile in problem.tiles(owner, queries)]
            area = sum((t.rows.stop - t.rows.start) * (t.columns.stop - t.columns.start) for t in tiles)
            computed.setdefault(balance, []).append(area / 64**2)
    # The last rank's two parts are neighbours and make one tile, of which a quarter is hidden.
    assert computed["zigzag"] == [2 * ranks + 1] * (ranks - 1) + [2 * ranks + 2]
    assert computed["none"] == [4 * (rank + 1) for rank in range(ranks)]


def test_routes():
    for ranks in range(1, 7):
        for wanted in itertools.chain.from_iterable(itertools.combinations(range(ranks), n) for n in range(ranks + 1)):
            route = Route.ring(ranks, wanted)
            for rank in range(ranks):
                seen = [(rank - held[rank]) % ranks for held in route.holders]
                assert set(wanted) <= set(seen) and len(set(seen)) == len(seen)
    window = Route.ring(8, {0, 1, 7})
    assert len(window.hops) == 2
    double = Route.double_ring(6, 3)
    assert [sorted(held[rank] for held in double.holders) for rank in range(6)] == [list(range(6))] * 6
    slow = [hop for hop in double.hops if any(sender // 3 != receiver // 3 for sender, receiver in enumerate(hop))]
    assert len(slow) == 1
    with pytest.raises(ValueError, match="inner must divide the 6 ranks"):
        Route.double_ring(6, 4)


def test_bad_arguments():
    q = torch.randn(1, 4, 6, 8)
    for options, message in (
        ({"dropout_p": 1.0}, "dropout_p must lie"),
        ({"mode": "spiral"}, "mode must be"),
        ({"balance": "zigzag", "causal": True}, "needs the positions"),
        ({"balance": "even"}, "balance must be"),
        ({"window": 0}, "window must be at least 1"),
        ({"cu_seqlens": torch.tensor([1, 6])}, "cu_seqlens"),
        ({"positions": torch.arange(5)}, "positions must be 6 integers"),
        ({"positions": SequenceLayout.split(8, 2)}, "positions are of"),
        ({"mode": "two_phase", "max_score_bytes": 100}, "576 bytes of scores"),
        ({"bias": torch.zeros(1, 1, 5, 6)}, "bias must be"),
    ):
        with pytest.raises(ValueError, match=message):
            ring_attention(q, q, q, None, **options)
    for shapes in ((q[0], q, q), (q, q[:, :3], q[:, :3]), (q, q, q[:, :, :3]), (q, q.repeat(2, 1, 1, 1), q)):
        with pytest.raises(ValueError, match="queries"):
            ring_attention(*shapes, None)
    with pytest.raises(TypeError, match="group must be"):
        ring_attention(q, q, q, "world")
    with pytest.raises(ValueError, match="rank must lie"):
        Loopback(2, 2)
    with pytest.raises(ValueError, match="length and ranks"):
        split_positions(0, 2)
    with pytest.raises(ValueError, match="balance"):
        split_positions(4, 2, "half")
    with pytest.raises(ValueError, match="window"):
        Visibility(window=-1)
    with pytest.warns(UserWarning, match="only evens out causal"):
        ring_attention(q, q, q, None, balance="zigzag", positions=torch.arange(6))
    projection = torch.randn(3, 5)
    with pytest.raises(ValueError, match="projection is of 5"):
        linformer_attention(q, q, q, projection, projection)
    with pytest.raises(ValueError, match="key_projection and value_projection"):
        linformer_attention(q, q, q, projection, projection[:2])
