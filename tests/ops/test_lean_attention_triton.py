"""The Triton kernel in Triton's interpreter, whose programs run one after another: waiting for another would hang."""

import pytest
import torch

from flambeau.ops.lean_attention import lean_decode
from flambeau.ops.triton_kernels import installed, kernels

pytestmark = [
    pytest.mark.skipif(not installed(), reason="Triton is not installed"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),  # numpy's, of -inf minus -inf in a branch not taken
]
LENGTHS = [0, 1, 15, 16, 17, 40]


def check(dim, heads, kv_heads, workers, dtype=torch.float32, queries=1, schedule="lean", two_pass=False, **options):
    generator = torch.Generator().manual_seed(dim)
    q = torch.randn(len(LENGTHS), queries, heads, dim, generator=generator).to(dtype)
    k, v = (torch.randn(len(LENGTHS), kv_heads, 40, dim, generator=generator).to(dtype) for _ in range(2))
    lengths = torch.tensor(LENGTHS)
    exact, exact_lse = lean_decode(q.double(), k.double(), v.double(), lengths, return_lse=True, **options)
    for row, length in enumerate(LENGTHS):
        k[row, :, length:] = v[row, :, length:] = torch.nan
    out, lse = lean_decode(
        q, k, v, lengths, schedule=schedule, workers=workers, tile=16, two_pass=two_pass, return_lse=True,
        backend="triton", **options,
    )  # fmt: skip
    assert (out.double() - exact).abs().max() < (1e-5 if dtype is torch.float32 else 5e-3)
    assert torch.equal(torch.isfinite(lse), torch.isfinite(exact_lse))
    torch.testing.assert_close(lse.double(), exact_lse, atol=2e-5, rtol=1e-6)


@pytest.mark.parametrize("workers", [1, 3, 7])
@pytest.mark.parametrize("two_pass", [False, True])
def test_equals_float64(workers, two_pass):
    check(40, 4, 2, workers, two_pass=two_pass)


@pytest.mark.parametrize("dim, heads, kv_heads", [(64, 1, 1), (80, 3, 3), (96, 7, 1), (128, 4, 2), (256, 2, 1)])
def test_head_sizes_and_groups(dim, heads, kv_heads):
    check(dim, heads, kv_heads, 3, torch.float16)


@pytest.mark.parametrize("schedule", ["split(2)", "split(3)", "per_head"])
def test_schedules(schedule):
    check(24, 1, 1, 3, schedule=schedule)
    check(24, 1, 1, 3, schedule=schedule, two_pass=True)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"window": 7},
        {"softcap": 3.0},
        {"slopes": torch.tensor([0.5, 0.1])},
        {"sinks": torch.tensor([0.5, -1.0])},
        {"starts": torch.tensor([0, 0, 3, 3, 10, 40])},
        {"tail_mask": torch.tensor([[True, False, False], [False, True, False], [True, False, True]])},
    ],
    ids=str,
)
def test_options(options):
    check(16, 2, 1, 3, queries=3, **options)


@pytest.mark.parametrize("page", [1, 7, 16])
def test_pages(page):
    generator = torch.Generator().manual_seed(0)
    lengths, blocks = torch.tensor([33, 0, 5]), -(-40 // page)
    shapes = (3, 4, 24), (3 * blocks, 2, page, 24), (3 * blocks, 2, page, 24)
    q, k, v = (torch.randn(s, generator=generator) for s in shapes)
    table = torch.randperm(3 * blocks, generator=generator).view(3, blocks).int()
    exact = lean_decode(q.double(), k.double(), v.double(), lengths, table)
    ours = lean_decode(q, k, v, lengths, table, workers=3, tile=16, backend="triton")
    assert (ours - exact).abs().max() < 1e-5
    across = lean_decode(
        q, k.transpose(1, 2).contiguous(), v.transpose(1, 2).contiguous(), lengths, table, "blhd", workers=3, tile=16,
        backend="triton",
    )  # fmt: skip
    assert torch.equal(across, ours)


def test_arrival_counters_are_zero_after_the_call():
    module = kernels("flambeau.ops.lean_attention.gpu", torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(s, generator=generator) for s in ((2, 1, 2, 16), (2, 2, 70, 16), (2, 2, 70, 16)))
    out, lse = torch.empty_like(q), torch.empty(2, 1, 2)
    options = {"scale": 0.25, "window": 0, "softcap": 0.0, "tile": 16, "pieces": 0, "workers": 7}
    arrived = module.decode(q, k, v, torch.tensor([70, 33]), *[None] * 5, out, lse, **options)
    assert arrived.shape == (4,) and not arrived.any()


def test_lengths_stay_on_the_device_and_are_clamped():
    module = kernels("flambeau.ops.lean_attention.gpu", torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(s, generator=generator) for s in ((2, 1, 2, 16), (2, 2, 20, 16), (2, 2, 20, 16)))
    out, lse = torch.empty_like(q), torch.empty(2, 1, 2)
    options = {"scale": 0.25, "window": 0, "softcap": 0.0, "tile": 16, "pieces": 0, "workers": 0}
    module.decode(q, k, v, torch.tensor([99, -4]), *[None] * 5, out, lse, **options)
    torch.testing.assert_close(out, lean_decode(q, k, v, torch.tensor([20, 0])), atol=1e-5, rtol=1e-5)


def test_what_the_kernel_cannot_run():
    q, k = torch.zeros(1, 1, 16), torch.zeros(1, 1, 4, 16)
    with pytest.raises(ValueError, match="bfloat16"):
        lean_decode(q.bfloat16(), k.bfloat16(), k.bfloat16(), backend="triton")
    with pytest.raises(ValueError, match="at most 128 query rows"):
        lean_decode(q.expand(200, 1, 16)[None], k, k, backend="triton")
    with pytest.raises(ValueError, match="at most 256"):
        lean_decode(torch.zeros(1, 1, 300), torch.zeros(1, 1, 4, 300), torch.zeros(1, 1, 4, 300), backend="triton")
