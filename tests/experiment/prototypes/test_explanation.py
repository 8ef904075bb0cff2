import pytest
import torch

from flambeau.experiment.prototypes.explanation import explain
from flambeau.models.prototype_net import PrototypeNet
from flambeau.models.tabular.autoencoder import MLPDecoder, MLPEncoder
from flambeau.models.vision.autoencoder import ConvDecoder, ConvEncoder


@pytest.fixture
def net():
    torch.manual_seed(0)
    shape, channels = (1, 8, 8), (4, 3)
    return PrototypeNet(ConvEncoder(shape, channels), ConvDecoder(shape, channels), 3, 6)


def test_contributions_sum_exactly_to_the_logits_the_net_gives(net):
    x, train = torch.rand(5, 1, 8, 8), torch.rand(20, 1, 8, 8)
    output = net(x)
    for i, explained in enumerate(explain(net, x, train)):
        assert torch.equal(explained.contributions.sum(0), explained.logits)
        torch.testing.assert_close(explained.logits.float(), output.logits[i].detach(), rtol=1e-6, atol=1e-5)
        assert explained.prediction == int(output.logits[i].argmax())
        order = explained.prototypes
        assert explained.distances.tolist() == sorted(explained.distances.tolist())
        torch.testing.assert_close(explained.distances, output.distances[i].detach()[order])
        torch.testing.assert_close(explained.decoded, net.decode_prototypes()[order])
        codes = net.encode_all(train)
        apart = (codes - net.prototypes.detach()[order].unsqueeze(1)).square().sum(-1)
        assert torch.equal(explained.cases, apart.argmin(1))
        assert torch.equal(explained.case_inputs, train[explained.cases])
        difference = explained.logits[explained.prediction] - explained.logits[explained.runner_up]
        torch.testing.assert_close(explained.margins.sum(), difference)


def test_reports(net, tmp_path):
    (explained,) = explain(net, torch.rand(1, 1, 8, 8), torch.rand(9, 1, 8, 8), classes=["<b>", "b", "c"])
    explained.save(tmp_path / "one.html")
    page = (tmp_path / "one.html").read_text()
    assert "data:image/png;base64," in page and "&lt;b&gt;" in page and "<th><b>" not in page
    assert f"{float(explained.logits[1]):+.4f}" in page
    explained.save(tmp_path / "one.png")
    assert (tmp_path / "one.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="suffix '.pdf'"):
        explained.save(tmp_path / "one.pdf")


def test_tables_are_explained_too(tmp_path):
    net = PrototypeNet(MLPEncoder(5), MLPDecoder(5), 3, 6)
    (explained,) = explain(net, torch.randn(1, 5), torch.randn(9, 5))
    explained.save(tmp_path / "row.png")
    assert explained.decoded.shape == (6, 5)


def test_bad_names(net):
    with pytest.raises(ValueError, match="classes: got 2 names, expected 3"):
        explain(net, torch.rand(1, 1, 8, 8), torch.rand(9, 1, 8, 8), classes=["a", "b"])
