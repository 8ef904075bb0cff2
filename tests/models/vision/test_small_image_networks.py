"""Networks of the CIFAR papers, against the parameter counts they report."""

import pytest
import torch

from flambeau.models.vision import ConvNet, DenseNetBC, WideResNet, cifar_resnet


def millions(model):
    return sum(parameter.numel() for parameter in model.parameters()) / 1e6


@pytest.mark.parametrize(("depth", "published"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7)])
def test_cifar_resnets_have_the_published_size(depth, published):
    """He et al. 2016, Table 6."""
    model = cifar_resnet(depth)
    extra = sum(p.numel() for n, p in model.named_parameters() if "downsample" in n) / 1e6  # theirs pad with zeros
    assert millions(model) - extra == pytest.approx(published, abs=0.03 if depth == 110 else 0.005)
    layers = [
        m for n, m in model.named_modules() if isinstance(m, (torch.nn.Conv2d, torch.nn.Linear)) and "down" not in n
    ]
    assert len(layers) == depth


@pytest.mark.parametrize(
    ("depth", "widen", "published"), [(40, 1, 0.6), (40, 2, 2.2), (40, 4, 8.9), (16, 8, 11.0), (28, 10, 36.5)]
)
def test_wide_resnets_have_the_published_size(depth, widen, published):
    """Zagoruyko and Komodakis 2016, Table 4."""
    with torch.device("meta"):
        assert millions(WideResNet(depth, widen)) == pytest.approx(published, abs=0.06)


@pytest.mark.parametrize(("depth", "growth", "published"), [(100, 12, 0.8), (250, 24, 15.3), (190, 40, 25.6)])
def test_densenets_have_the_published_size(depth, growth, published):
    """Huang et al. 2017, Table 2."""
    with torch.device("meta"):
        assert millions(DenseNetBC(depth, growth)) == pytest.approx(published, abs=0.06)


@pytest.mark.parametrize(
    "build", [lambda: cifar_resnet(8), lambda: WideResNet(10, 1), lambda: DenseNetBC(10, 4), ConvNet]
)
def test_gradients_reach_every_parameter(build):
    torch.manual_seed(0)
    model = build()
    channels = 1 if isinstance(model, ConvNet) else 3
    assert model(torch.rand(2, channels, 32, 32)).shape == (2, 10)
    model(torch.rand(2, channels, 16, 16)).square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.parameters())


def test_a_dense_layer_keeps_its_input_and_transitions_halve():
    model = DenseNetBC(16, 4).eval()
    x = torch.rand(1, 8, 8, 8)
    assert torch.equal(model.features.denseblock1.denselayer1(x)[:, :8], x)
    assert model.features.transition1(torch.rand(1, 16, 8, 8)).shape == (1, 8, 4, 4)


def test_bad_sizes_are_refused():
    with pytest.raises(ValueError, match=r"depth must be 6n \+ 2 .* got 18"):
        cifar_resnet(18)
    with pytest.raises(ValueError, match=r"depth must be 6n \+ 4 .* got 26"):
        WideResNet(26)
    with pytest.raises(ValueError, match=r"depth must be 6n \+ 4 .* got 99"):
        DenseNetBC(99)
    with pytest.raises(ValueError, match=r"widths and strides: .* got \(4, 8\), \(1,\)"):
        ConvNet((4, 8), (1,))
