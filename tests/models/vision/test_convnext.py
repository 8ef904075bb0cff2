import pytest
import torch
from torch.nn import functional as F

from flambeau.models.vision.convnext import ConvNeXt, LayerNorm2d, convnext_small, convnext_tiny


def test_size_and_names_are_those_of_torchvision():
    with torch.device("meta"):
        assert sum(p.numel() for p in convnext_tiny().parameters()) == 28_589_128
        assert sum(p.numel() for p in convnext_small().parameters()) == 50_223_688
        names = set(convnext_tiny().state_dict())
    assert len(names) == 182
    assert {
        "features.0.0.weight", "features.0.1.bias", "features.1.0.layer_scale", "features.1.2.block.0.weight",
        "features.2.0.weight", "features.2.1.weight", "features.5.8.block.5.bias", "classifier.0.weight",
        "classifier.2.bias",
    } <= names  # fmt: skip


def test_a_block_is_that_of_the_paper():
    torch.manual_seed(0)
    model = ConvNeXt((1,), (6,), in_channels=2, classes=3, layer_scale=0.5).double()
    block, x = model.features[1][0], torch.randn(2, 6, 9, 8, dtype=torch.double)
    conv, norm, first, second = (block.block[i] for i in (0, 2, 3, 5))
    y = F.conv2d(x, conv.weight, conv.bias, padding=3, groups=6)
    y = (y - y.mean(1, keepdim=True)) / (y.var(1, keepdim=True, unbiased=False) + 1e-6).sqrt()
    y = y * norm.weight[:, None, None] + norm.bias[:, None, None]
    y = F.gelu(torch.einsum("oi,bihw->bohw", first.weight, y) + first.bias[:, None, None])
    y = torch.einsum("oi,bihw->bohw", second.weight, y) + second.bias[:, None, None]
    torch.testing.assert_close(block(x), x + 0.5 * y)
    assert model(torch.randn(2, 2, 32, 24, dtype=torch.double)).shape == (2, 3)


def test_layer_norm_over_channels_of_a_volume():
    x = torch.randn(2, 5, 3, 4, 2)
    y = LayerNorm2d(5)(x)
    assert y.shape == x.shape
    torch.testing.assert_close(y.mean(1), torch.zeros(2, 3, 4, 2), atol=1e-6, rtol=0)


def test_bad_stages():
    with pytest.raises(ValueError, match="blocks and widths"):
        ConvNeXt((1, 2), (4,))
