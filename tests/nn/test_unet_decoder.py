import pytest
import torch
from torch import nn

from flambeau.nn.unet_decoder import LightDecoder


def test_it_is_the_papers_decoder():
    with torch.device("meta"):
        decoder = LightDecoder(32, 768)
    assert decoder.widths == [768, 384, 192, 96, 48, 24] and len(decoder.blocks) == 5
    up, first, norm, act, second, last = decoder.blocks[1]
    assert (up.kernel_size, up.stride, up.in_channels, up.out_channels) == ((4, 4), (2, 2), 384, 384)
    assert (first.out_channels, second.out_channels, first.bias) == (384, 192, None)
    assert isinstance(act, nn.ReLU6) and isinstance(norm, nn.BatchNorm2d) and isinstance(last, nn.BatchNorm2d)
    assert decoder.head.kernel_size == (1, 1) and decoder.head.out_channels == 3


@pytest.mark.parametrize("dims", [2, 3])
def test_features_are_added_before_their_blocks(dims):
    torch.manual_seed(0)
    decoder = LightDecoder(4, 8, 2, dims).eval()
    size = (3, 2, 1)[:dims]
    coarse, fine = torch.randn(2, 8, *size), torch.randn(2, 4, *(2 * n for n in size))
    with torch.no_grad():
        y = decoder([coarse, fine])
        torch.testing.assert_close(y, decoder.head(decoder.blocks[1](decoder.blocks[0](coarse) + fine)))
        torch.testing.assert_close(decoder([coarse]), decoder.head(decoder.blocks[1](decoder.blocks[0](coarse))))
        assert torch.equal(decoder([coarse, None]), decoder([coarse]))
    assert y.shape == (2, 2, *(4 * n for n in size))


def test_bad_decoders():
    for arguments, message in [
        ((6, 12), "power of two"),
        ((1, 8), "power of two"),
        ((8, 12), "multiple of the stride 8"),
    ]:
        with pytest.raises(ValueError, match=message):
            LightDecoder(*arguments)
    with pytest.raises(ValueError, match="dims must be 2 or 3"):
        LightDecoder(8, 8, dims=1)
