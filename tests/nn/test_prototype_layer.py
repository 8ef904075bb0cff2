import pytest
import torch

from flambeau.nn.prototype import PrototypeHead, PrototypeLayer


def test_contributions_sum_to_the_logits():
    torch.manual_seed(0)
    distances = 5 * torch.rand(7, 15)
    head = PrototypeHead(15, 10)
    torch.testing.assert_close(head.contributions(distances).sum(1), head(distances), rtol=1e-6, atol=1e-5)


def test_rigid_motion_of_latent_space_and_permutation_change_nothing():
    torch.manual_seed(1)
    layer, head = PrototypeLayer(6, 5).double(), PrototypeHead(6, 3).double()
    z = torch.randn(9, 5, dtype=torch.float64)
    before = head(layer(z))
    rotation = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64)).Q
    offset, order = torch.randn(5, dtype=torch.float64), torch.randperm(6)
    with torch.no_grad():
        layer.prototypes.copy_(layer.prototypes @ rotation + offset)
    torch.testing.assert_close(head(layer(z @ rotation + offset)), before)
    with torch.no_grad():
        layer.prototypes.copy_(layer.prototypes[order])
        head.weight.copy_(head.weight[order])
    torch.testing.assert_close(head(layer(z @ rotation + offset)), before)


def test_fixed_class_weights_are_not_learned_and_cover_all_classes():
    head = PrototypeHead(15, 10, mode="fixed_class", gamma=0.5)
    assert not list(head.parameters())
    assert set(head.favoured_class.tolist()) == set(range(10))
    assert set(head.weight.unique().tolist()) == {-1.0, 0.5}
    assert torch.equal(PrototypeHead(15, 10, init="assigned", gamma=0.5).weight.detach(), head.weight)


def test_uniform_start_is_the_papers():
    torch.manual_seed(0)
    for start in (PrototypeLayer(50, 40).prototypes, PrototypeHead(50, 10).weight):
        assert 0 <= start.min() and start.max() < 1 and abs(float(start.mean()) - 0.5) < 0.05


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(mode="tied"), "mode"),
        (dict(init="zeros"), "init"),
        (dict(gamma=-1.0), "gamma"),
        (dict(num_prototypes=0), "prototypes"),
        (dict(num_prototypes=4, mode="fixed_class"), "num_prototypes: got 4 for 10"),
    ],
)
def test_bad_head(arguments, message):
    with pytest.raises(ValueError, match=message):
        PrototypeHead(**(dict(num_prototypes=15, num_classes=10) | arguments))


def test_fewer_prototypes_than_classes_is_a_warning_when_free():
    with pytest.warns(UserWarning, match="some class has no prototype"):
        PrototypeHead(4, 10)


def test_bad_codes():
    with pytest.raises(ValueError, match=r"z: got shape \(2, 3\), expected \[batch, 4\]"):
        PrototypeLayer(3, 4)(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="latent_dim"):
        PrototypeLayer(3, 0)
