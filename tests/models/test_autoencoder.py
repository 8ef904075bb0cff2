import pytest
import torch

from flambeau.models.tabular.autoencoder import MLPDecoder, MLPEncoder
from flambeau.models.vision.autoencoder import ConvDecoder, ConvEncoder, conv_autoencoder


@pytest.mark.parametrize("size", [28, 32, 64, 97, (28, 33), (1, 5)])
def test_decoder_returns_the_exact_input_size(size):
    height, width = (size, size) if isinstance(size, int) else size
    encoder, decoder = ConvEncoder((3, height, width)), ConvDecoder((3, height, width))
    x = torch.rand(2, 3, height, width)
    z = encoder(x)
    assert z.shape == (2, encoder.latent_dim)
    assert decoder(z).shape == x.shape


def test_sizes_of_the_paper():
    encoder, decoder = ConvEncoder((1, 28, 28)), ConvDecoder((1, 28, 28))
    assert encoder.latent_dim == 40
    sizes, x = [], torch.rand(1, 1, 28, 28)
    for layer in encoder.layers:
        x = layer(x)
        sizes.append(x.shape[-1])
    assert sizes == [14, 7, 4, 2]
    seen = []
    for layer in decoder.layers:
        layer.register_forward_hook(lambda module, args, output: seen.append(output.shape[-1]))
    decoder(torch.rand(1, 40))
    assert seen == [4, 7, 14, 28]


def test_mixed_strides_linear_output_and_weight_std():
    torch.manual_seed(0)
    options = dict(channels=(32, 32, 10), strides=(2, 2, 1), weight_std=0.01)
    encoder, decoder = ConvEncoder((1, 8, 8), **options), ConvDecoder((1, 8, 8), sigmoid=False, **options)
    assert encoder.latent_dim == 40
    assert abs(encoder.layers[1].weight.std().item() - 0.01) < 0.001 and not encoder.layers[1].bias.any()
    assert decoder(torch.zeros(1, 40)).abs().max() == 0  # linear: a sigmoid would give one half


def test_mlp_pair():
    encoder, decoder = MLPEncoder(30, (16,), 8), MLPDecoder(30, (16,), 8)
    assert decoder(encoder(torch.randn(4, 30))).shape == (4, 30) and encoder.latent_dim == 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(image_shape=(8, 8)), "image_shape"),
        (dict(image_shape=(1, 8, 8), strides=(2, 2)), "expected one of each"),
        (dict(image_shape=(1, 8, 8), strides=3), "strides"),
        (dict(image_shape=(1, 8, 8), channels=()), "channels"),
    ],
)
def test_bad_arguments(arguments, message):
    for cls in (ConvEncoder, ConvDecoder):
        with pytest.raises(ValueError, match=message):
            cls(**arguments)


def test_bad_input():
    with pytest.raises(ValueError, match=r"expected \(1, 8, 8\)"):
        ConvEncoder((1, 8, 8))(torch.rand(1, 3, 8, 8))
    with pytest.raises(ValueError, match=r"expected \[batch, 30\]"):
        MLPEncoder(30)(torch.rand(4, 29))
    with pytest.raises(ValueError, match="widths"):
        MLPEncoder(0)


@pytest.mark.parametrize(("size", "latent"), [(8, 40), (28, 40), (32, 40), (64, 40), (97, 40), (1, 10)])
def test_pair_reaches_two_pixels_from_any_size(size, latent):
    encoder, decoder = conv_autoencoder((1, size, size))
    assert encoder.latent_dim == latent
    assert decoder(encoder(torch.rand(1, 1, size, size))).shape == (1, 1, size, size)
    if size == 28:
        assert [layer.out_channels for layer in encoder.layers] == [32, 32, 32, 10]
