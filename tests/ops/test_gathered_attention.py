"""The Triton kernels, interpreted, against the reference: outputs and gradients."""

import pytest
import torch

from flambeau.ops import triton_kernels
from flambeau.ops.gathered_attention import gathered_attention

needs_triton = pytest.mark.skipif(not triton_kernels.installed(), reason="Triton is not installed")


def case(seed=0, batch=1, heads=2, time=40, chunks=3, width=20, span=35, dim=16):
    generator = torch.Generator().manual_seed(seed)
    parts = [torch.randn(batch, heads, time, dim, generator=generator).requires_grad_() for _ in range(3)]
    rows, columns = (torch.randint(time, (batch, heads, chunks, slots), generator=generator) for slots in (width, span))
    groups = [torch.randint(-1, 2, index.shape, generator=generator) for index in (rows, columns)]
    return parts, (rows, columns, *groups)


@needs_triton
@pytest.mark.parametrize(
    "options",
    [{}, dict(causal=True), dict(causal=True, mask_self=True), dict(reach=9, causal=True, mask_self=True, scale=0.7)],
)
def test_triton_equals_the_reference(options):
    parts, index = case()
    weights = torch.randn(1, 2, 3, 20, 16, generator=torch.Generator().manual_seed(1))
    results = {}
    for backend in ("reference", "triton"):
        y = gathered_attention(*parts, *index, backend=backend, **options)
        results[backend] = y, torch.autograd.grad((y * weights).sum(), parts)
    assert torch.allclose(results["triton"][0], results["reference"][0], atol=1e-5)
    for ours, theirs in zip(results["triton"][1], results["reference"][1]):
        assert theirs.abs().max() > 1e-2 and torch.allclose(ours, theirs, atol=1e-5)


@needs_triton
def test_the_operator_is_registered_soundly():
    parts, index = case(time=12, chunks=1, width=16, span=16)
    from flambeau.ops.gathered_attention.operators import gathered_forward

    arguments = (*parts, *index, True, False, -1, 0.25)
    torch.library.opcheck(gathered_forward, arguments, test_utils=("test_schema", "test_faketensor"))


def test_reference_gradients():
    parts, index = case(time=10, chunks=2, width=4, span=6, dim=3)
    parts = [part.detach().double().requires_grad_() for part in parts]
    options = dict(causal=True, mask_self=True, bias=torch.randn(2, 4, 6, dtype=torch.float64))
    assert torch.autograd.gradcheck(lambda *p: gathered_attention(*p, *index, **options), parts)


def test_empty_slots_and_lonely_queries_give_zero():
    parts, (rows, columns, row_groups, column_groups) = case()
    y = gathered_attention(*parts, rows, columns, torch.full_like(row_groups, -1), column_groups)
    assert y.abs().max() == 0
    y = gathered_attention(*parts, rows, columns, torch.full_like(row_groups, 5), column_groups)
    y.sum().backward()
    assert y.abs().max() == 0 and all(torch.isfinite(part.grad).all() for part in parts)


def test_bad_backend():
    parts, index = case(dim=6)
    with pytest.raises(ValueError, match="backend must be auto, reference or triton"):
        gathered_attention(*parts, *index, backend="cuda")
    with pytest.raises(ValueError, match="cannot run this"):
        gathered_attention(*parts, *index, backend="triton")
