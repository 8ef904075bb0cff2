import pytest
import torch
from torch import nn

from flambeau.experiment.prototypes.audit import audit_prototypes
from flambeau.models.prototype_net import PrototypeNet


def three_clusters():
    """Codes are inputs; prototypes 0 to 2 sit on three classes, prototype 3 doubles 0 and speaks for another class."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    y = torch.arange(60) % 3
    x = centres[y] + 0.1 * torch.randn(60, 2, generator=generator)
    net = PrototypeNet(nn.Identity(), nn.Identity(), 3, 4, latent_dim=2, w_init="assigned")
    with torch.no_grad():
        net.prototypes.copy_(centres[[0, 1, 2, 0]])
        net.head.weight[3] = torch.tensor([0.0, -1e-4, 0.0])
    return net, x, y


def test_audit_of_a_known_case():
    net, x, y = three_clusters()
    audit = audit_prototypes(net, x, y, x, y, k=10)
    assert audit.accuracy == 1 and audit.covered == [0, 1, 2] and audit.duplicates == [(0, 3)]
    assert audit.agreement == 0.75
    assert [record.label for record in audit.records] == [0, 1, 2, 0]
    assert [record.speaks_for for record in audit.records] == [0, 1, 2, 1]
    assert all(record.purity == 1 for record in audit.records)
    for record in audit.records:
        assert record.nearest_case == record.nearest_looking_case  # inputs are codes here
        assert record.pixel_distance**2 == pytest.approx(record.latent_distance, rel=1e-4)
        assert y[record.nearest_case] == record.label
    assert audit.records[3].influence == 0 and audit.records[1].influence > 0
    assert audit.rows()[2]["prototype"] == 2


def test_influence_is_the_accuracy_lost_by_pruning():
    net, x, y = three_clusters()
    lost = audit_prototypes(net, x, y, x, y).records[1].influence
    net.prune(1)
    assert lost == pytest.approx(1 - float((net.predict(x) == y).float().mean()), abs=1e-6)


def test_purity_counts_the_neighbours_of_another_class():
    net, x, y = three_clusters()
    nearest = (x - net.prototypes[1]).square().sum(1).topk(10, largest=False).indices
    y = y.clone()
    y[nearest[1:4]] = 2
    assert audit_prototypes(net, x, y, x, y, k=10).records[1].purity == pytest.approx(0.7)


def test_bad_k():
    net, x, y = three_clusters()
    with pytest.raises(ValueError, match="k: got 61"):
        audit_prototypes(net, x, y, x, y, k=61)


def test_distances_and_reconstruction_of_the_whole_set():
    net, x, y = three_clusters()
    audit = audit_prototypes(net, x[:30], y[:30], x[30:], y[30:])
    near = (net.prototypes.detach().unsqueeze(1) - x[:30]).square().sum(-1)
    assert audit.to_case == pytest.approx(float(near.min(1).values.mean()), rel=1e-5)
    test = (net.prototypes.detach().unsqueeze(1) - x[30:]).square().sum(-1)
    assert audit.to_prototype == pytest.approx(float(test.min(0).values.mean()), rel=1e-5)
    pairs = (x[:30].unsqueeze(1) - x[:30]).square().sum(-1)
    assert audit.spread == pytest.approx(float(pairs.sum() / (30 * 29)), rel=1e-5)
    assert audit.reconstruction == 0  # the decoder is the identity
