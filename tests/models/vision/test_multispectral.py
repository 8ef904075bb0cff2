"""Networks for any number of bands: shapes, sizes, what gradients reach, and weights carried over by band name."""

import pytest
import torch
from safetensors.torch import save_file

from flambeau.models.vision.band_weights import adapt_first_conv, load_band_weights
from flambeau.models.vision.fc_siam import FCSiam
from flambeau.models.vision.random_features import RandomFeatures
from flambeau.models.vision.resnet import resnet18
from flambeau.models.vision.unet import UNet

RGB, ALL = ["red", "green", "blue"], ["blue", "green", "red", "nir", "swir1"]


def test_unet_keeps_the_size_and_uses_every_band():
    torch.manual_seed(0)
    net = UNet(5, 3, width=4, depth=2).eval()
    for size in ((16, 16), (17, 30), (5, 9)):
        assert net(torch.randn(2, 5, *size)).shape == (2, 3, *size)
    x = torch.randn(1, 5, 16, 16, requires_grad=True)
    net(x)[0, 0, 8, 8].backward()
    assert (x.grad.abs().sum((0, 2, 3)) > 0).all()
    sizes = [sum(p.numel() for p in UNet(13, 7, width=w, depth=d).parameters()) for w, d in ((8, 4), (16, 3))]
    assert all(450_000 < size < 550_000 for size in sizes)
    with pytest.raises(ValueError, match="depth must be at least 1"):
        UNet(3, 2, depth=0)


def test_siamese_networks_see_change():
    torch.manual_seed(0)
    a, b = torch.randn(2, 4, 16, 16), torch.randn(2, 4, 16, 16)
    diff, conc = (FCSiam(4, 2, width=4, depth=2, fuse=fuse).eval() for fuse in ("diff", "conc"))
    assert diff(a, b).shape == conc(a, b).shape == (2, 2, 16, 16)
    assert torch.allclose(diff(a, b), diff(b, a), atol=1e-6) and not torch.allclose(conc(a, b), conc(b, a), atol=1e-3)
    same = diff(a, a)
    assert torch.allclose(same[0], same[1], atol=1e-5), "without change it cannot tell the pictures apart"
    with pytest.raises(ValueError, match="must be alike"):
        diff(a, b[..., :12])
    with pytest.raises(ValueError, match="multiples of 4"):
        diff(a[..., :14], b[..., :14])
    with pytest.raises(ValueError, match="fuse"):
        FCSiam(fuse="sum")


@pytest.mark.parametrize("mode", ["gaussian", "empirical"])
def test_random_features_repeat_and_tell_pictures_apart(mode):
    def make():
        features = RandomFeatures(3, 16, mode=mode, generator=torch.Generator().manual_seed(0), bias=0.0)
        return features.fit(pictures) if mode == "empirical" else features

    pictures = torch.randn(6, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    one = make()(pictures)
    assert one.shape == (6, 16) and torch.equal(one, make()(pictures)) and (one >= 0).all() and one.std(0).min() > 0
    assert not list(make().parameters())
    with pytest.raises(ValueError, match="even number"):
        RandomFeatures(3, 15)
    with pytest.raises(ValueError, match="empirical"):
        RandomFeatures(3, 16).fit(pictures)


def test_shared_bands_keep_their_weights():
    weight = torch.rand(8, 3, 7, 7)
    assert torch.allclose(adapt_first_conv(weight, RGB, RGB), weight)
    assert torch.allclose(adapt_first_conv(weight, RGB, RGB[::-1]), weight.flip(1))
    wide = adapt_first_conv(weight, RGB, ALL)
    assert wide.shape == (8, 5, 7, 7)
    scale = (wide[:, 2] / weight[:, 0]).mean()  # red
    assert torch.allclose(wide[:, :3], weight.flip(1) * scale) and torch.allclose(wide[:, 3], wide[:, 4])
    before, after = weight.sum(1), wide.sum(1)
    assert torch.allclose(before, after, rtol=1e-4), "equal bands give the same output"
    with pytest.raises(ValueError, match="no band in common"):
        adapt_first_conv(weight, RGB, ["nir"])
    with pytest.raises(ValueError, match="source must be 3 different bands"):
        adapt_first_conv(weight, ["red", "green"], ALL)


def test_a_file_of_weights_is_loaded_by_band_name(tmp_path):
    torch.manual_seed(0)
    source, target = resnet18(in_channels=3, classes=10), resnet18(in_channels=5, classes=4)
    save_file(source.state_dict(), tmp_path / "rgb.safetensors")
    torch.save(source.state_dict(), tmp_path / "rgb.pt")
    for name in ("rgb.safetensors", "rgb.pt"):
        left = load_band_weights(target, tmp_path / name, source=RGB, target=ALL)
        assert left == ["fc.weight", "fc.bias"]
        assert torch.equal(target.layer3[1].conv2.weight, source.layer3[1].conv2.weight)
    assert torch.allclose(target.conv1.weight, adapt_first_conv(source.conv1.weight, RGB, ALL))
    gray = torch.randn(2, 1, 64, 64)
    one, two = (net.eval().stages(gray.expand(2, n, 64, 64))["stem"] for net, n in ((source, 3), (target, 5)))
    assert (one - two).norm() < 0.3 * one.norm(), "a grey picture looks much the same"
    with pytest.raises(ValueError, match="weights have no 'conv1.weight'"):
        load_band_weights(target, {"a.weight": torch.zeros(1)}, source=RGB, target=ALL)
    with pytest.raises(ValueError, match="has no convolution"):
        load_band_weights(torch.nn.Linear(2, 2), {}, source=RGB, target=ALL)
