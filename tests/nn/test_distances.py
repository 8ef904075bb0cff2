import pytest
import torch

from flambeau.nn.distances import nearest, squared_distances


def broadcast(a, b):
    return (a.double().unsqueeze(-2) - b.double().unsqueeze(-3)).square().sum(-1)


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_equals_the_broadcast_reference_and_is_never_negative(offset):
    a = torch.randn(50, 7, generator=torch.Generator().manual_seed(0)) + offset
    b = torch.cat([torch.randn(20, 7, generator=torch.Generator().manual_seed(1)) + offset, a[:5]])
    torch.testing.assert_close(squared_distances(a, b).double(), broadcast(a, b), rtol=1e-5, atol=1e-5)
    assert (squared_distances(a, a) >= 0).all() and (squared_distances(a, a).diagonal() == 0).all()
    naive = (a * a).sum(1, keepdim=True) + (a * a).sum(1) - 2 * a @ a.T
    assert (naive.diagonal() != 0).any(), "the plain expansion would have passed too"


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_matmul_form_centres_before_it_expands(offset):
    a = torch.randn(64, 16, generator=torch.Generator().manual_seed(2)) + offset
    got = squared_distances(a, a, matmul=True)
    assert (got >= 0).all()
    torch.testing.assert_close(got.double(), broadcast(a, a), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("matmul", [False, True])
def test_chunks_change_neither_values_nor_gradients(matmul):
    a = torch.randn(2, 33, 5, dtype=torch.float64, requires_grad=True)
    b = torch.randn(2, 9, 5, dtype=torch.float64, requires_grad=True)
    whole, parts = squared_distances(a, b, matmul=matmul), squared_distances(a, b, matmul=matmul, chunk=100)
    torch.testing.assert_close(parts, whole)
    weights = torch.randn_like(whole)
    for got, expected in zip(
        torch.autograd.grad(parts, (a, b), weights), torch.autograd.grad(whole, (a, b), weights), strict=True
    ):
        torch.testing.assert_close(got, expected)


def test_chunked_backward_does_not_keep_the_differences():
    a, b = torch.randn(400, 8, requires_grad=True), torch.randn(50, 8)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        squared_distances(a, b, chunk=50 * 8 * 10)
    assert max(kept, default=0) < 400 * 50 * 8


def test_gradient():
    a = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    b = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(squared_distances, (a, b))


def test_nearest_agrees_with_the_whole_table():
    a, b = torch.randn(40, 6), torch.randn(30, 6)
    distances, index = nearest(a, b, k=4, chunk=500)
    expected = squared_distances(a, b).topk(4, largest=False)
    assert torch.equal(index, expected.indices) and torch.equal(distances, expected.values)


def test_compiled_export_keeps_the_batch_free():
    class Distances(torch.nn.Module):
        def forward(self, a, b):
            return squared_distances(a, b)

    a, b = torch.randn(6, 3), torch.randn(4, 3)
    program = torch.export.export(Distances(), (a, b), dynamic_shapes=({0: torch.export.Dim("n")}, None))
    wide = torch.randn(11, 3)
    torch.testing.assert_close(program.module()(wide, b), squared_distances(wide, b))


@pytest.mark.parametrize(
    ("a", "b", "error"),
    [
        (torch.zeros(3, 2, dtype=torch.int64), torch.zeros(3, 2), TypeError),
        (torch.zeros(3, 2), torch.zeros(3, 2, dtype=torch.float64), TypeError),
        (torch.zeros(3, 2), torch.zeros(3, 4), ValueError),
        (torch.zeros(3), torch.zeros(3, 3), ValueError),
    ],
)
def test_bad_input(a, b, error):
    with pytest.raises(error, match="a, b"):
        squared_distances(a, b)


def test_bad_counts():
    with pytest.raises(ValueError, match="k: got 4"):
        nearest(torch.zeros(2, 2), torch.zeros(3, 2), k=4)
    with pytest.raises(ValueError, match="chunk"):
        squared_distances(torch.zeros(2, 2), torch.zeros(3, 2), chunk=0)
