import itertools
import random

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from flambeau.ops import build
from flambeau.ops.lean_attention import (
    LeanPlan,
    SoftmaxState,
    cpu,
    lean_decode,
    lean_scaled_dot_product_attention,
    merge_states,
    operators,
)
from flambeau.ops.lean_attention.reference import lean_reference

ISAS = list(build.ISA_FLAGS)
RUNS = ISAS[: ISAS.index(build.instruction_set()) + 1]
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 5e-3}


@pytest.fixture(params=ISAS)
def isa(request, monkeypatch):
    if request.param not in RUNS:
        pytest.skip(f"this processor has no {request.param}")
    monkeypatch.setenv("FLAMBEAU_ISA", request.param)
    return request.param


def example(batch, heads, kv_heads, dim, keys, queries=None, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, heads, dim) if queries is None else (batch, queries, heads, dim)
    q = torch.randn(shape, generator=generator)
    k, v = (torch.randn(batch, kv_heads, keys, dim, generator=generator) for _ in range(2))
    return q.to(dtype), k.to(dtype), v.to(dtype)


def assert_near(ours, q, k, v, *arguments, **options):
    """Output and lse against the float64 definition on the same rounded inputs."""
    exact, exact_lse = lean_decode(q.double(), k.double(), v.double(), *arguments, return_lse=True, **options)
    out, lse = ours
    assert out.dtype == q.dtype and out.shape == q.shape and lse.dtype == torch.float32
    assert (out.double() - exact).abs().max() < TOLERANCE[q.dtype]
    assert torch.equal(torch.isfinite(lse), torch.isfinite(exact_lse))
    torch.testing.assert_close(lse.double(), exact_lse, atol=2e-5, rtol=1e-6)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("dim", [5, 24, 40, 64, 80, 96, 128, 256])
def test_cpu_equals_float64(isa, dim, dtype):
    tile, rng = 64, random.Random(dim)
    lengths = torch.tensor([0, 1, tile - 1, tile, tile + 1, 300])
    for heads, kv_heads in [(1, 1), (3, 3), (6, 2), (7, 1)]:
        q, k, v = example(6, heads, kv_heads, dim, 300, dtype=dtype, seed=heads)
        for schedule in ("lean", "per_head", "split(3)"):
            workers = rng.choice([1, 2, 3, 5, 11])
            ours = lean_decode(
                q, k, v, lengths, schedule=schedule, workers=workers, tile=tile, return_lse=True, backend="cpu"
            )
            assert_near(ours, q, k, v, lengths)


def options(batch, queries, heads, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        "plain": {},
        "window": {"window": 37},
        "window of one": {"window": 1},
        "softcap": {"softcap": 3.0},
        "slopes": {"slopes": torch.rand(heads, generator=generator)},
        "slopes of rows": {"slopes": torch.rand(batch, heads, generator=generator)},
        "sinks": {"sinks": torch.randn(heads, generator=generator)},
        "starts": {"starts": torch.tensor([0, 1, 40, 3, 150])},
        "tree": {"tail_mask": torch.rand(batch, queries, queries, generator=generator) > 0.4},
        "all": {
            "scale": 0.3, "window": 90, "softcap": 5.0, "slopes": torch.rand(heads, generator=generator),
            "sinks": torch.randn(heads, generator=generator), "starts": torch.tensor([0, 0, 20, 3, 150]),
            "tail_mask": torch.ones(queries, queries, dtype=torch.bool).tril(),
        },
    }  # fmt: skip


@pytest.mark.parametrize("name", options(5, 1, 1))
def test_options_on_the_cpu(isa, name):
    for queries, (heads, kv_heads) in itertools.product([1, 3, 6], [(2, 2), (6, 2)]):
        q, k, v = example(5, heads, kv_heads, 40, 200, queries)
        chosen = options(5, queries, heads)[name]
        lengths = torch.tensor([0, 2, 130, 64, 200])  # a row may be shorter than the number of queries
        for workers in (1, 4):
            ours = lean_decode(q, k, v, lengths, schedule="lean", workers=workers, tile=16, return_lse=True, **chosen)
            assert_near(ours, q, k, v, lengths, **chosen)


def test_a_query_sees_what_plain_attention_sees():
    q, k, v = example(2, 4, 2, 32, 50, 5, torch.float64)
    position = torch.arange(45, 50)[:, None]
    seen = (torch.arange(50) <= position) & (torch.arange(50) > position - 7)
    bias = -torch.linspace(0.1, 1, 4, dtype=torch.float64)[:, None, None] * (position - torch.arange(50))
    bias = bias.masked_fill(~seen, -torch.inf)
    expected = scaled_dot_product_attention(q.transpose(1, 2), k, v, bias, enable_gqa=True).transpose(1, 2)
    ours = lean_decode(q, k, v, window=7, slopes=torch.linspace(0.1, 1, 4, dtype=torch.float64))
    torch.testing.assert_close(ours, expected, atol=1e-7, rtol=1e-7)  # slopes are float32
    scores = torch.einsum("bnhd,bhkd->bhnk", q, k.repeat_interleave(2, 1)) / 32**0.5
    scores = (2.0 * torch.tanh(scores / 2.0)).masked_fill(torch.arange(50) > position, -torch.inf)
    sink = torch.tensor([1.0, -1.0, 0.0, 2.0], dtype=torch.float64).view(1, 4, 1, 1).expand(2, 4, 5, 1)
    weights = torch.cat([scores, sink], -1).softmax(-1)[..., :-1]
    expected = torch.einsum("bhnk,bhkd->bnhd", weights, v.repeat_interleave(2, 1))
    ours = lean_decode(q, k, v, softcap=2.0, sinks=sink[0, :, 0, 0])
    torch.testing.assert_close(ours, expected, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("page", [1, 7, 16, 100])
def test_pages_and_strides_change_nothing(isa, page):
    lengths = torch.tensor([0, 1, 95, 213])
    q, k, v = example(4, 6, 2, 64, 213)
    expected = lean_decode(q, k, v, lengths, workers=3, schedule="lean", tile=32, backend="cpu")
    strided = lean_decode(
        q.repeat_interleave(2, 2).view(4, 6, 64, 2).transpose(2, 3)[:, :, 0].contiguous() * 0 + q,
        k.transpose(1, 2).contiguous(), v.transpose(1, 2).contiguous(), lengths, layout="blhd", workers=3,
        schedule="lean", tile=32, backend="cpu",
    )  # fmt: skip
    assert torch.equal(strided, expected)
    blocks = -(-213 // page)
    order = torch.randperm(4 * blocks, generator=torch.Generator().manual_seed(0))
    table = order.view(4, blocks).int()
    pages = []
    for x in (k, v):
        padded = torch.nn.functional.pad(x, (0, 0, 0, blocks * page - 213), value=torch.nan)
        pool = torch.full((4 * blocks, 2, page, 64), torch.nan)
        pool[order] = padded.view(4, 2, blocks, page, 64).transpose(1, 2).flatten(0, 1)
        pages.append(pool)
    paged = lean_decode(q, *pages, lengths, table, workers=3, schedule="lean", tile=32, backend="cpu")
    assert torch.equal(paged, expected)
    exact = lean_decode(q.double(), *(x.double() for x in pages), lengths, table)
    assert (paged - exact).abs().max() < 1e-5


def test_monoid():
    generator = torch.Generator().manual_seed(0)
    count = 10_000

    def states():
        m = 1e4 * (2 * torch.rand(count, dtype=torch.float64, generator=generator) - 1)
        m = torch.where(torch.rand(count, generator=generator) < 0.5, m / 1e4, m)  # close together, or far apart
        size = torch.rand(count, dtype=torch.float64, generator=generator) + 0.5
        o = torch.randn(count, 3, dtype=torch.float64, generator=generator)
        none = torch.rand(count, generator=generator) < 0.2
        return SoftmaxState(m.masked_fill(none, -torch.inf), size.masked_fill(none, 0), o.masked_fill(none[:, None], 0))

    def assert_equal(a, b):
        for one, other in ((a.m, b.m), (a.l, b.l), (a.o, b.o)):
            assert not one.isnan().any()
            torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-12)

    x, y, z = states(), states(), states()
    assert_equal((x + y) + z, x + (y + z))
    assert_equal(x + y, y + x)
    zero = SoftmaxState.identity((count,), 3, x.m)
    assert_equal(x + zero, x)
    assert_equal(zero + zero, zero)
    assert not (zero + zero).output().any() and (zero.lse() == -torch.inf).all()


def test_any_number_of_workers_gives_the_same_result():
    q, k, v = example(3, 4, 2, 32, 500, 1, torch.float64)
    lengths = torch.tensor([500, 0, 77])
    whole, whole_lse = lean_reference(q, k, v, lengths, scale=0.2)
    q32, k32, v32 = q.float(), k.float(), v.float()
    for workers in range(1, 65):
        plan = LeanPlan(lengths.tolist(), 2, 16, workers)
        out, lse = lean_reference(q, k, v, lengths, scale=0.2, plan=plan)
        torch.testing.assert_close(out, whole, atol=1e-12, rtol=1e-12)
        torch.testing.assert_close(lse, whole_lse, atol=1e-12, rtol=1e-12)
        fast = lean_decode(q32, k32, v32, lengths, scale=0.2, workers=workers, schedule="lean", tile=16, backend="cpu")
        assert (fast - whole).abs().max() < 1e-5


def test_a_fixed_number_of_workers_gives_the_same_bits():
    q, k, v = example(3, 6, 2, 64, 3000)
    lengths = torch.tensor([3000, 10, 700])
    for schedule in ("lean", "split(5)"):
        first = lean_decode(q, k, v, lengths, workers=7, schedule=schedule, return_lse=True)
        for _ in range(20):
            again = lean_decode(q, k, v, lengths, workers=7, schedule=schedule, return_lse=True)
            assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])


def counts(q, k, v, lengths, table=None, **changes):
    chosen = {"scale": 1.0, "window": 0, "softcap": 0.0, "tile": 64, "pieces": 0, "workers": 5} | changes
    out, lse = torch.empty_like(q), q.new_empty(q.shape[:3], dtype=torch.float32)
    return cpu.decode(q, k, v, lengths, table, None, None, None, None, out, lse, **chosen)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_every_key_is_read_once_and_the_plan_is_what_runs(dtype):
    lengths = torch.tensor([1000, 0, 1, 130])
    for heads, kv_heads in [(2, 2), (16, 2), (12, 1)]:  # also under GQA
        q, k, v = example(4, heads, kv_heads, 64, 1000, 2, dtype)
        for pieces, schedule in ((0, "lean"), (1, "per_head"), (3, "split(3)")):
            for workers in (1, 2, 5, 17):
                plan = LeanPlan(lengths.tolist(), kv_heads, 64, workers, schedule)
                found = counts(q, k, v, lengths, pieces=pieces, workers=workers)
                assert found.bytes == 2 * int(lengths.sum()) * kv_heads * 64 * q.element_size()
                assert (found.partials, found.units) == (plan.partials, len(plan.ranges))
        windowed = counts(q, k, v, lengths, window=100)
        assert windowed.bytes == 2 * (101 + 0 + 1 + 101) * kv_heads * 64 * q.element_size()


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_what_lies_beyond_a_length_is_never_read(backend):
    q, k, v = example(3, 4, 2, 40, 100)
    lengths, starts = torch.tensor([64, 0, 99]), torch.tensor([3, 0, 0])
    expected = lean_decode(q, k, v, lengths, starts=starts, backend=backend)
    for row, (start, length) in enumerate(zip(starts, lengths)):
        k[row, :, length:] = v[row, :, length:] = torch.nan
        k[row, :, :start] = v[row, :, :start] = torch.nan
    assert torch.equal(lean_decode(q, k, v, lengths, starts=starts, backend=backend), expected)


def test_two_halves_of_a_cache_merge_to_the_whole():
    q, k, v = example(3, 4, 2, 64, 100)
    whole, whole_lse = lean_decode(q, k, v, torch.tensor([100, 60, 0]), return_lse=True)
    parts = [
        lean_decode(q, k[:, :, :40], v[:, :, :40], torch.tensor([40, 40, 0]), return_lse=True),
        lean_decode(q, k[:, :, 40:], v[:, :, 40:], torch.tensor([60, 20, 0]), return_lse=True),
        lean_decode(q, k, v, torch.tensor([0, 0, 0]), return_lse=True),
    ]
    out, lse = merge_states(torch.stack([p[0] for p in parts]), torch.stack([p[1] for p in parts]))
    torch.testing.assert_close(out, whole, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(lse, whole_lse, atol=1e-5, rtol=1e-6)


def test_extreme_scores():
    q, k, v = example(1, 2, 1, 64, 300)
    for size in (1e-30, 1e3, 1e15):
        out, lse = lean_decode(size * q, k, v, return_lse=True, workers=4, schedule="lean", tile=16)
        exact, exact_lse = lean_decode((size * q).double(), k.double(), v.double(), return_lse=True)
        assert (out - exact).abs().max() < 1e-3
        torch.testing.assert_close(lse.double(), exact_lse, atol=1e-4, rtol=1e-6)


def test_halves_round_to_nearest():
    v = torch.tensor([1 + 2**-11, 65519.0, 65520.0, 3e-8, 2.9e-8, -7e-6, 1e-4, 0.1, float("inf")]).repeat(2)
    q = torch.zeros(1, 1, len(v), dtype=torch.half)
    values = torch.stack([v.half(), v.half().nextafter(torch.tensor(0.0).half())])[None, None]
    for isa in RUNS:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("FLAMBEAU_ISA", isa)
            out = lean_decode(q, torch.zeros_like(values), values, backend="cpu")
        assert torch.equal(out[0, 0], values[0, 0].float().mean(0).half())


def test_threads_of_a_fork_and_of_python():
    from concurrent.futures import ThreadPoolExecutor

    q, k, v = example(2, 4, 2, 64, 2000)
    expected = lean_decode(q, k, v, workers=3, schedule="lean")
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: lean_decode(q, k, v, workers=3, schedule="lean"), range(20)))
    assert all(torch.equal(x, expected) for x in found)


def test_operator_is_traced_and_checked():
    q, k, v = example(2, 4, 2, 32, 20, 1)
    arguments = (q, k, v, torch.tensor([20, 7]), None, None, None, None, None, 0.2, 0, 0.0, 16, 0, 2, False, "cpu")
    torch.library.opcheck(operators.lean_decode_op, arguments, test_utils=["test_schema", "test_faketensor"])

    class Attend(torch.nn.Module):
        def forward(self, q, k, v):
            return lean_decode(q, k, v, workers=2)

    program = torch.export.export(Attend(), (q, k, v))
    assert "lean_decode" in str(program.graph)
    torch.testing.assert_close(program.module()(q, k, v), lean_decode(q, k, v), atol=1e-6, rtol=1e-5)
    compiled = torch.compile(Attend(), fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(q, k, v), lean_decode(q, k, v), atol=1e-6, rtol=1e-5)


def test_sdpa_drop_in():
    generator = torch.Generator().manual_seed(0)
    for queries, keys in [(1, 30), (4, 30), (4, 4), (20, 30)]:
        q, k, v = (torch.randn(3, h, n, 16, generator=generator) for h, n in ((6, queries), (2, keys), (2, keys)))
        position, key = torch.arange(keys - queries, keys)[:, None], torch.arange(keys)
        padded = (key >= torch.tensor([0, 5, 2]).view(3, 1, 1, 1)) & (key <= position)
        for mask, causal in (
            (None, False), (None, True), (padded, False), (torch.rand(3, 1, queries, keys) > 0.3, False),
            (torch.randn(queries, keys), False),
        ):  # fmt: skip
            expected = scaled_dot_product_attention(q, k, v, mask, 0.0, causal, enable_gqa=True)
            ours = lean_scaled_dot_product_attention(q, k, v, mask, is_causal=causal, enable_gqa=True)
            if mask is padded:  # PyTorch's zeros or NaN for queries that see nothing
                expected = expected.nan_to_num(0)
            torch.testing.assert_close(ours, expected, atol=2e-6, rtol=1e-5)
    q.requires_grad_()
    lean_scaled_dot_product_attention(q, k, v, enable_gqa=True).sum().backward()
    assert q.grad is not None


Q, K = torch.zeros(2, 4, 8), torch.zeros(2, 2, 10, 8)
TABLE = torch.zeros(2, 3, dtype=torch.int32)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"q": torch.zeros(2, 5, 8)}, "5 heads"),
        ({"q": torch.zeros(2, 4, 9)}, "head size"),
        ({"q": torch.zeros(2, 8)}, "axes"),
        ({"q": torch.zeros(3, 4, 8)}, "batch"),
        ({"v": torch.zeros(2, 2, 11, 8)}, "v has shape"),
        ({"v": K.half()}, "v is torch.float16"),
        ({"k": K.half(), "v": K.half()}, "k is torch.float16"),
        ({"k": torch.zeros(2, 2, 8, 10).mT}, "stride"),
        ({"lengths": torch.tensor([3, 11])}, "3 to 11"),
        ({"lengths": torch.tensor([-1, 3])}, "-1"),
        ({"lengths": torch.tensor([1, 2, 3])}, "lengths has shape"),
        ({"lengths": torch.tensor([1.0, 2.0])}, "lengths is torch.float32"),
        ({"block_table": TABLE}, "lengths is None"),
        ({"block_table": TABLE + 2, "lengths": torch.tensor([3, 4])}, "pages 2 to 2; there are 2"),
        ({"block_table": TABLE[0], "lengths": torch.tensor([3, 4])}, "block_table"),
        ({"block_table": TABLE, "lengths": torch.tensor([3, 31])}, "0 to 30"),
        ({"layout": "bdhl"}, "layout"),
        ({"window": 0}, "window"),
        ({"softcap": -1.0}, "softcap"),
        ({"schedule": "stream"}, "schedule"),
        ({"workers": 0}, "workers"),
        ({"tile": 0}, "tile"),
        ({"slopes": torch.zeros(3)}, "slopes"),
        ({"sinks": torch.zeros(2)}, "sinks"),
        ({"starts": torch.zeros(3, dtype=torch.long)}, "starts"),
        ({"tail_mask": torch.ones(2, 2, dtype=torch.bool)}, "tail_mask"),
        ({"backend": "cuda"}, "backend"),
        ({"q": Q.clone().requires_grad_()}, "q requires a gradient"),
        ({"v": K.clone().requires_grad_()}, "v requires a gradient"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        lean_decode(**({"q": Q, "k": K, "v": K} | arguments))


def test_types_a_backend_cannot_run():
    with pytest.raises(TypeError, match="float64"):
        lean_decode(Q.double(), K.double(), K.double(), backend="cpu")
    with pytest.raises(TypeError, match="floating"):
        lean_decode(Q.int(), K.int(), K.int())
    with torch.no_grad():
        assert not lean_decode(Q.clone().requires_grad_(), K, K).requires_grad


def test_empty_batches_and_caches():
    assert lean_decode(Q[:0], K[:0], K[:0]).shape == (0, 4, 8)
    out, lse = lean_decode(Q + 1, K[:, :, :0], K[:, :, :0], return_lse=True)
    assert not out.any() and (lse == -torch.inf).all()
