"""One convolution with weights made on the fly equals convolution and fixed normalisation, in value and gradients."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from flambeau.nn import conv_bn_tune, freeze_statistics, unfreeze_statistics
from flambeau.nn.conv_bn import coefficients, fused_parameters

CASES = {
    "conv1d": (nn.Conv1d(4, 6, 3), nn.BatchNorm1d(6), (2, 4, 9)),
    "conv2d": (nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6), (2, 4, 7, 7)),
    "conv3d": (nn.Conv3d(4, 6, 3), nn.BatchNorm3d(6), (2, 4, 5, 5, 5)),
    "stride and dilation": (nn.Conv2d(4, 6, 3, stride=2, dilation=2), nn.BatchNorm2d(6), (2, 4, 9, 9)),
    "groups": (nn.Conv2d(4, 8, 3, groups=2), nn.BatchNorm2d(8), (2, 4, 7, 7)),
    "depthwise": (nn.Conv2d(4, 8, 3, groups=4), nn.BatchNorm2d(8), (2, 4, 7, 7)),
    "same": (nn.Conv2d(4, 6, 3, padding="same"), nn.BatchNorm2d(6), (2, 4, 7, 7)),
    "reflect": (nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), nn.BatchNorm2d(6), (2, 4, 7, 7)),
    "circular": (nn.Conv1d(4, 6, 3, padding=1, padding_mode="circular"), nn.BatchNorm1d(6), (2, 4, 7)),
    "transposed 1d": (nn.ConvTranspose1d(4, 6, 3), nn.BatchNorm1d(6), (2, 4, 7)),
    "transposed 2d": (nn.ConvTranspose2d(4, 6, 3, 2, 1, output_padding=1), nn.BatchNorm2d(6), (2, 4, 5, 5)),
    "transposed 3d": (nn.ConvTranspose3d(4, 6, 2), nn.BatchNorm3d(6), (2, 4, 3, 3, 3)),
    "transposed groups": (nn.ConvTranspose2d(4, 8, 3, 2, 1, 1, groups=2), nn.BatchNorm2d(8), (2, 4, 5, 5)),
    "transposed depthwise": (nn.ConvTranspose1d(4, 4, 3, dilation=2, groups=4), nn.BatchNorm1d(4), (2, 4, 7)),
    "linear": (nn.Linear(4, 6), nn.BatchNorm1d(6), (5, 4)),
    "no bias": (nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d(6), (2, 4, 7, 7)),
    "not affine": (nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6, affine=False), (2, 4, 7, 7)),
    "neither": (nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d(6, affine=False), (2, 4, 7, 7)),
    "sync": (nn.Conv2d(4, 6, 3), nn.SyncBatchNorm(6), (2, 4, 7, 7)),
}


def prepared(case, dtype=torch.float64):
    """The modules with statistics and affine parameters that are not those of a new normalisation, and an input."""
    conv, bn, shape = CASES[case]
    generator = torch.Generator().manual_seed(0)
    conv, bn = conv.to(dtype), bn.to(dtype).eval()
    with torch.no_grad():
        bn.running_mean.normal_(generator=generator)
        bn.running_var.uniform_(0.2, 3, generator=generator)
        if bn.affine:
            bn.weight.normal_(generator=generator)
            bn.bias.normal_(generator=generator)
    return conv, bn, torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()


def values_and_gradients(function, conv, bn, x):
    y = function(x)
    upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(y.dtype)
    return [y, *torch.autograd.grad(y, [x, *conv.parameters(), *bn.parameters()], upstream)]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
@pytest.mark.parametrize("case", CASES)
def test_value_and_every_gradient_equal_those_of_two_modules(case, dtype, tolerance):
    conv, bn, x = prepared(case, dtype)
    two = values_and_gradients(lambda x: bn(conv(x)), conv, bn, x)
    one = values_and_gradients(lambda x: conv_bn_tune(x, conv, bn), conv, bn, x)
    assert len(one) == 2 + len(list(conv.parameters())) + len(list(bn.parameters()))
    for a, b in zip(one, two):
        assert a.shape == b.shape and (a - b).abs().max() <= tolerance * max(1, b.abs().max())


@pytest.mark.parametrize("case", ["conv2d", "depthwise", "transposed 2d", "transposed groups"])
def test_channels_last_is_kept(case):
    conv, bn, x = prepared(case)
    last = dict(memory_format=torch.channels_last)
    expected = values_and_gradients(lambda x: bn(conv(x)), conv, bn, x)
    conv, x = conv.to(**last), x.detach().to(**last).requires_grad_()
    got = values_and_gradients(lambda x: conv_bn_tune(x, conv, bn), conv, bn, x)
    assert got[0].is_contiguous(**last) and fused_parameters(conv, bn)[0].is_contiguous(**last)
    for a, b in zip(got, expected):
        torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-10)
    conv.to(memory_format=torch.contiguous_format)


def test_output_size_of_a_transposed_convolution():
    conv, bn, x = prepared("transposed 2d")
    for size in ((9, 9), (10, 9)):
        torch.testing.assert_close(conv_bn_tune(x, conv, bn, size), bn(conv(x, size)))


def test_gradients_and_second_gradients_by_finite_differences():
    conv, bn, x = prepared("transposed groups")
    names = [*(f"conv.{n}" for n, _ in conv.named_parameters()), *(f"bn.{n}" for n, _ in bn.named_parameters())]
    pair = nn.ModuleDict({"conv": conv, "bn": bn})

    def function(x, *values):
        with torch.nn.utils.stateless._reparametrize_module(pair, dict(zip(names, values))):
            return conv_bn_tune(x, conv, bn)

    inputs = (x[:1, :, :2, :2].detach().requires_grad_(), *pair.parameters())
    assert torch.autograd.gradcheck(function, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


@pytest.mark.parametrize("wrap", [parametrizations.weight_norm, parametrizations.spectral_norm, nn.utils.weight_norm])
def test_a_computed_weight_is_used_as_computed(wrap):
    torch.manual_seed(0)
    conv, bn = wrap(nn.Conv2d(4, 6, 3)), nn.BatchNorm2d(6)
    bn(conv(torch.randn(4, 4, 5, 5)))
    conv.eval(), bn.eval()
    x = torch.randn(2, 4, 5, 5)
    (expected,) = torch.autograd.grad(bn(conv(x)).square().sum(), [next(conv.parameters())])
    y = conv_bn_tune(x, conv, bn)
    torch.testing.assert_close(y, bn(conv(x)))
    conv(x)  # the older weight_norm computes the weight, with its graph, when the module is called
    (got,) = torch.autograd.grad(conv_bn_tune(x, conv, bn).square().sum(), [next(conv.parameters())])
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_precision_of_a_half_model():
    """Scaling in float32 and rounding once is closer to the exact weights than scaling in bfloat16."""
    conv, bn, _ = prepared("conv2d", torch.float32)
    conv, bn = conv.bfloat16(), bn.bfloat16()
    scale = bn.weight.double() / (bn.running_var.double() + bn.eps).sqrt()
    exact = conv.weight.double() * scale.view(-1, 1, 1, 1)
    error = {p: (fused_parameters(conv, bn, precision=p)[0] - exact).abs().mean() for p in ("input", "fp32")}
    assert error["fp32"] < 0.7 * error["input"]
    assert fused_parameters(conv, bn, precision="fp32")[0].dtype == torch.bfloat16
    mixed = bn.float()  # a normalisation kept in float32 beside a half convolution
    assert conv_bn_tune(torch.randn(1, 4, 5, 5, dtype=torch.bfloat16), conv, mixed).dtype == torch.bfloat16


def test_coefficients():
    _, bn, _ = prepared("conv2d")
    torch.testing.assert_close(coefficients(bn), bn.weight.detach() / torch.sqrt(bn.running_var + bn.eps))


def test_bad_input():
    x = torch.randn(1, 3, 5, 5)
    conv = nn.Conv2d(3, 4, 1)
    with pytest.raises(ValueError, match="conv has 4 outputs, bn 5 features"):
        conv_bn_tune(x, conv, nn.BatchNorm2d(5))
    with pytest.raises(ValueError, match="bn has no running statistics"):
        conv_bn_tune(x, conv, nn.BatchNorm2d(4, track_running_stats=False))
    with pytest.raises(TypeError, match="conv must be .*, got ReLU"):
        conv_bn_tune(x, nn.ReLU(), nn.BatchNorm2d(4))
    with pytest.raises(TypeError, match="bn must be a batch normalisation, got InstanceNorm2d"):
        conv_bn_tune(x, conv, nn.InstanceNorm2d(4))
    with pytest.raises(ValueError, match="precision must be 'input' or 'fp32', got 'fp64'"):
        conv_bn_tune(x, conv, nn.BatchNorm2d(4), precision="fp64")


def test_frozen_statistics_stay_through_train_and_are_freed_again():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout())
    assert freeze_statistics(model) == 1
    model.train()(torch.randn(4, 1, 5, 5))
    assert model.training and model[2].training and not model[1].training and model[1].num_batches_tracked == 0
    assert all(parameter.requires_grad for parameter in model[1].parameters())
    unfreeze_statistics(model)
    model.train()(torch.randn(4, 1, 5, 5))
    assert model[1].num_batches_tracked == 1
    with pytest.raises(ValueError, match="Linear has no batch normalisation"):
        freeze_statistics(nn.Linear(1, 1))
