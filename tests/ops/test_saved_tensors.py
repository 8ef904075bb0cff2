import torch

from flambeau.ops.saved_tensors import SavedTensors


def test_a_product_saves_its_two_factors():
    a, b = torch.randn(100, requires_grad=True), torch.randn(100, requires_grad=True)
    with SavedTensors() as saved:
        (a * b).sum()
    assert saved.bytes == 2 * 100 * 4
    assert saved.shapes == [((100,), torch.float32)] * 2


def test_views_of_one_storage_count_once():
    a = torch.randn(10, 10, requires_grad=True)
    with SavedTensors() as saved:
        (a.t() * a).sum()
    assert saved.bytes == 400


def test_excluded_storages_do_not_count():
    layer = torch.nn.Linear(8, 4)
    x = torch.randn(3, 8)
    with SavedTensors(exclude=layer.parameters()) as saved:
        layer(x).sum()
    assert saved.bytes == x.numel() * 4


def test_a_storage_freed_inside_the_block_is_not_mistaken_for_the_next():
    with SavedTensors() as saved:
        total = torch.zeros(())
        for _ in range(5):
            x = torch.randn(1000, requires_grad=True)
            total = total + (x.exp()).sum().detach()
            del x
    assert saved.bytes == 5 * 4000


def test_backward_still_works_inside_and_after():
    a = torch.randn(5, requires_grad=True)
    with SavedTensors():
        loss = a.square().sum()
    loss.backward()
    torch.testing.assert_close(a.grad, 2 * a.detach())
