import pytest
import torch
from torch import nn

from flambeau.models.prototype_net import PrototypeNet
from flambeau.models.tabular.autoencoder import MLPDecoder, MLPEncoder
from flambeau.nn.distances import squared_distances
from flambeau.objectives.prototype import PrototypeLoss, prototype_distance_terms, reconstruction_loss


def codes_net(prototypes, num_classes=2, **options):
    """A net whose codes are its inputs."""
    prototypes = torch.as_tensor(prototypes)
    net = PrototypeNet(
        nn.Identity(), nn.Identity(), num_classes, len(prototypes), latent_dim=prototypes.shape[1], **options
    ).to(prototypes.dtype)
    with torch.no_grad():
        net.prototypes.copy_(prototypes)
    return net


def test_hand_case_and_duality():
    z, p = torch.tensor([[0.0], [10.0]]), torch.tensor([[1.0], [9.0], [50.0]])
    r1, r2 = prototype_distance_terms(squared_distances(z, p))
    assert r1 == pytest.approx((1 + 1 + 1600) / 3) and r2 == pytest.approx((1 + 1) / 2)
    assert prototype_distance_terms(squared_distances(p, z)) == (r2, r1)


def test_prototypes_on_inputs_have_no_r1_and_no_gradient_from_it():
    torch.manual_seed(0)
    x = torch.randn(12, 4)
    net = codes_net(x[:3])
    terms = prototype_distance_terms(net(x).distances)
    assert terms[0] == 0
    (gradient,) = torch.autograd.grad(terms[0], net.prototypes)
    assert not gradient.any()
    assert prototype_distance_terms(codes_net(x)(x).distances)[1] == 0


def test_r1_reaches_one_input_per_prototype():
    torch.manual_seed(1)
    z = torch.randn(50, 4, requires_grad=True)
    r1, _ = prototype_distance_terms(squared_distances(z, torch.randn(5, 4)))
    (gradient,) = torch.autograd.grad(r1, z)
    assert 1 <= int((gradient != 0).any(1).sum()) <= 5


def test_whole_loss_gradcheck():
    torch.manual_seed(2)
    net = PrototypeNet(MLPEncoder(5, (6,), 3), MLPDecoder(5, (6,), 3), 3, 4).double()
    x, y = torch.randn(6, 5, dtype=torch.float64), torch.randint(3, (6,))
    names, values = zip(*net.named_parameters())

    def total(*parameters):
        def loss(module):
            return PrototypeLoss()(module, (x, y))["loss"]

        return torch.func.functional_call(Wrapped(net, loss), {f"net.{n}": p for n, p in zip(names, parameters)}, ())

    assert torch.autograd.gradcheck(total, values)


class Wrapped(nn.Module):
    def __init__(self, net, function):
        super().__init__()
        self.net, self.function = net, function

    def forward(self):
        return self.function(self.net)


def test_terms_are_weighted_and_ablated_ones_still_reported():
    torch.manual_seed(3)
    net, batch = codes_net(torch.randn(4, 3)), (torch.randn(8, 3), torch.randint(2, (8,)))
    full, ablated = PrototypeLoss()(net, batch), PrototypeLoss(r1=0)(net, batch)
    parts = {name: float(full[name]) for name in ("cls", "ae", "r1", "r2")}
    assert float(full["loss"]) == pytest.approx(20 * parts["cls"] + parts["ae"] + parts["r1"] + parts["r2"], rel=1e-5)
    assert float(ablated["loss"]) == pytest.approx(float(full["loss"]) - parts["r1"], rel=1e-5)
    assert ablated["r1"] == full["r1"] > 0
    assert full["ae"] == 0 == reconstruction_loss(net, batch)["loss"]  # the identity reconstructs perfectly


def test_small_batches_bias_r1_and_the_bank_removes_the_bias():
    torch.manual_seed(4)
    data, prototypes = torch.randn(400, 3), torch.randn(15, 3)
    labels = torch.zeros(400, dtype=torch.int64)
    exact = float(squared_distances(prototypes, data).min(1).values.mean())
    plain = codes_net(prototypes)
    alone = [float(PrototypeLoss()(plain, (x, y))["r1"]) for x, y in zip(data.split(20), labels.split(20))]
    assert sum(alone) / len(alone) > 2 * exact
    for loss, memory in (PrototypeLoss(r1_pool="bank"), 400), (PrototypeLoss(r1_pool="epoch", epoch_size=400), 500):
        net = codes_net(prototypes, memory=memory).train()
        values = [float(loss(net, (x, y))["r1"]) for x, y in zip(data.split(20), labels.split(20))]
        assert values == sorted(values, reverse=True), "a growing pool can only lower the minimum"
        assert values[-1] == pytest.approx(exact, rel=1e-5)


def test_remembered_codes_move_prototypes_only_and_evaluation_does_not_write():
    net = codes_net(torch.tensor([[0.0, 0.0]]), memory=4).train()
    loss = PrototypeLoss(cls=0, ae=0, r2=0, r1_pool="bank")
    y = torch.zeros(2, dtype=torch.int64)
    loss(net, (torch.tensor([[1.0, 0.0], [2.0, 0.0]]), y))
    x = torch.tensor([[3.0, 0.0], [4.0, 0.0]], requires_grad=True)
    loss(net, (x, y))["loss"].backward()
    assert net.prototypes.grad.tolist() == [[-2.0, 0.0]] and not x.grad.any()
    written = int(net.memorised)
    net.eval()
    loss(net, (x, y))
    assert int(net.memorised) == written == 4


@pytest.mark.parametrize(
    ("x", "y", "error", "message"),
    [
        (torch.zeros(1, 3), torch.zeros(1, dtype=torch.int64), ValueError, "expected at least 2"),
        (torch.zeros(2, 3), torch.tensor([0, 2]), ValueError, r"labels: got values from 0 to 2, expected \[0, 2\)"),
        (torch.zeros(2, 3), torch.tensor([-1, 0]), ValueError, "labels"),
        (torch.zeros(2, 3), torch.tensor([0, 1, 1]), ValueError, r"labels: got shape \(3,\)"),
        (torch.zeros(2, 3), torch.tensor([0.0, 1.0]), TypeError, "labels: got torch.float32"),
        (torch.full((2, 3), float("nan")), torch.tensor([0, 1]), ValueError, "NaN"),
        (torch.zeros(2, 3, dtype=torch.int32), torch.tensor([0, 1]), TypeError, "x: got torch.int32"),
    ],
)
def test_bad_batches(x, y, error, message):
    with pytest.raises(error, match=message):
        PrototypeLoss()(codes_net(torch.randn(4, 3)), (x, y))


def test_bad_arguments():
    with pytest.raises(ValueError, match="weights >= 0"):
        PrototypeLoss(r1=-1)
    with pytest.raises(ValueError, match="r1_pool"):
        PrototypeLoss(r1_pool="all")
    with pytest.raises(ValueError, match="epoch_size"):
        PrototypeLoss(r1_pool="epoch")
    batch = (torch.zeros(2, 3), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="memory"):
        PrototypeLoss(r1_pool="bank")(codes_net(torch.randn(4, 3)), batch)
    with pytest.raises(ValueError, match="memory=9"):
        PrototypeLoss(r1_pool="epoch", epoch_size=9)(codes_net(torch.randn(4, 3), memory=5), batch)
