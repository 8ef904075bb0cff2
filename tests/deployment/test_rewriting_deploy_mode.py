"""Fusion for good, the table of the pairs, the rescaling that changes no function, and PyTorch's own pass."""

import copy
import shutil
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from flambeau.deployment.rewriting import (
    FusedBatchNorm,
    deploy_mode,
    explain_convbn,
    rescale_channels,
    tune_mode,
)
from flambeau.deployment.rewriting.inductor import disable_inductor_pass, enable_inductor_pass
from flambeau.models.vision import ResNet


def network():
    torch.manual_seed(0)
    model = ResNet((1, 1), (4, 8), in_channels=1, classes=3, stem="small").double()
    for _ in range(3):
        model(3 * torch.randn(16, 1, 8, 8, dtype=torch.float64) + 1)
    return model.eval()


def transposed():
    torch.manual_seed(0)
    layers = [
        nn.ConvTranspose2d(4, 8, 3, groups=2),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 4, 3),
        nn.BatchNorm2d(4),
    ]
    model = nn.Sequential(*layers).eval()
    for norm in (model[1], model[4]):
        norm.running_mean.normal_(), norm.running_var.uniform_(0.5, 2)
    return model


X = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("before", ["eval", "tune"])
def test_fused_for_good(before):
    model, expected = network(), network()(X)
    if before == "tune":
        tune_mode(model)
    report = deploy_mode(model)
    assert report.n_pairs == 6 and (model(X) - expected).abs().max() < 1e-10
    assert isinstance(model.bn1, FusedBatchNorm) and not any("bn" in name for name in model.state_dict())
    assert model.conv1.bias.requires_grad and model.conv1.weight.is_leaf
    model.train()
    assert (model(X) - expected).abs().max() < 1e-10
    assert {row["mode"] for row in explain_convbn(model).rows} == {"deploy"}
    with pytest.raises(ValueError, match="no pair"):
        deploy_mode(model)


def test_what_cannot_be_fused():
    with pytest.raises(ValueError, match="no pair can be fused: bn1: in training mode; call model.eval"):
        deploy_mode(network().train())
    parametrized = nn.Sequential(parametrizations.weight_norm(nn.Conv2d(1, 2, 1)), nn.BatchNorm2d(2)).eval()
    with pytest.raises(ValueError, match="1: the weight of 0 is computed by a parametrization"):
        deploy_mode(parametrized)
    assert tune_mode(parametrized).n_pairs == 1
    tied = nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2), nn.Conv2d(2, 2, 1)).eval()
    tied[2].weight = tied[0].weight
    with pytest.raises(ValueError, match="1: the weight of 0 is shared with another module"):
        deploy_mode(tied)


def test_channels_last_and_groups_when_fused():
    model, x = transposed().to(memory_format=torch.channels_last), torch.randn(2, 4, 6, 6)
    expected = model(x)
    deploy_mode(model)
    torch.testing.assert_close(model(x), expected)
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last)


def test_the_table():
    model, x = network(), X
    table = explain_convbn(model, x)
    first = table.rows[0]
    assert (first["convolution"], first["normalisation"], first["mode"]) == ("conv1", "bn1", "eval")
    assert (first["map bytes"], first["weight bytes"]) == (2 * 4 * 8 * 8 * 8, 4 * 1 * 9 * 8)
    scale = (model.bn1.weight / torch.sqrt(model.bn1.running_var + 1e-5)).abs()
    assert first["smallest c"] == pytest.approx(scale.min().item()) and first["largest c"] == pytest.approx(
        scale.max().item()
    )
    tune_mode(model, exclude=["conv1"])
    model.layer2[0].bn1.train()
    modes = [row["mode"] for row in explain_convbn(model).rows]
    assert modes == ["eval", "tune", "tune", "train", "tune", "tune"]
    assert explain_convbn(model).rows[0]["map bytes"] is None
    shown = str(explain_convbn(model, x[:1, :, :4, :4])).splitlines()
    assert (
        len(shown) == 7 and shown[0].startswith("convolution") and any("tune mode keeps more" in line for line in shown)
    )
    plain = nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
    assert "skipped 1: its input comes from 0, a ReLU" in str(explain_convbn(plain))


def test_spread_coefficients_are_warned_of():
    model = network()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        deploy_mode(copy.deepcopy(model))
    with torch.no_grad():
        model.bn1.running_var[0] = 1e6
    assert explain_convbn(model).rows[0]["note"] == "unstable in deploy mode"
    with pytest.warns(UserWarning, match="differ by more than 100 in bn1: training the fused weights may be unstable"):
        deploy_mode(model)


@pytest.mark.parametrize("make", [network, lambda: transposed().double()])
def test_rescaled_channels_compute_the_same(make):
    model = make()
    x = X if isinstance(model, ResNet) else torch.randn(2, 4, 6, 6, dtype=torch.float64)
    expected, before = model(x), copy.deepcopy(model.state_dict())
    spread = max(row["largest c"] / row["smallest c"] for row in explain_convbn(model).rows)
    rescale_channels(model, 1, 30, generator=torch.Generator().manual_seed(0))
    assert (model(x) - expected).abs().max() < 1e-10
    rows = explain_convbn(model).rows
    assert max(row["largest c"] / row["smallest c"] for row in rows) > 3 * spread
    norms = {row["normalisation"]: row["convolution"] for row in rows}
    for norm, conv in norms.items():
        ratio = model.state_dict()[norm + ".running_mean"] / before[norm + ".running_mean"]
        assert ((ratio >= 1) & (ratio <= 30)).all() and ratio.unique().numel() == ratio.numel()
        assert torch.equal(model.state_dict()[norm + ".weight"], before[norm + ".weight"])
        assert not torch.equal(model.state_dict()[conv + ".weight"], before[conv + ".weight"])
    with pytest.raises(ValueError, match="1 <= low <= high, got 0.5 and 2"):
        rescale_channels(model, 0.5, 2)


@pytest.fixture
def inductor():
    torch._dynamo.reset()
    yield
    disable_inductor_pass()
    torch._dynamo.reset()


def only_the_pass(graph_module, inputs):
    """A backend that runs PyTorch's pass as inductor does, and compiles nothing."""
    import torch._inductor.fx_passes.efficient_conv_bn_eval  # registers the patterns
    from torch._inductor.fx_passes.pre_grad import efficient_conv_bn_eval_pass

    efficient_conv_bn_eval_pass.apply(graph_module.graph)
    return torch.fx.Interpreter(graph_module).run  # an argument of the pass's node is a function: no code for it


def merged(model, x, backend):
    """Output of the compiled model, and how many pairs PyTorch's pass has merged."""
    from torch._dynamo.utils import counters

    counters.clear()
    with torch._inductor.config.patch(fx_graph_cache=False):
        out = torch.compile(model, backend=backend)(x)
    return out, counters["inductor"]["efficient_conv_bn_eval"]


def test_inductors_pass_merges_as_many_pairs_as_we_find(inductor):
    model, expected = network(), network()(X)
    assert merged(model, X, only_the_pass)[1] == 0
    torch._dynamo.reset()
    report = tune_mode(model, backend="inductor")
    assert not any("forward" in vars(module) for module in model.modules())
    out, count = merged(model, X, only_the_pass)
    assert (out - expected).abs().max() < 1e-10 and count == report.n_pairs == 6


def test_groups_of_a_transposed_convolution(inductor):
    """PyTorch's formula does not know them and fails; with ours in its place the pass is right."""
    import torch._inductor.config as config

    model, x = transposed(), torch.randn(2, 4, 6, 6)
    with config.patch(efficient_conv_bn_eval_fx_passes=True), pytest.raises(Exception, match="must match the size"):
        merged(model, x, only_the_pass)
    torch._dynamo.reset()
    enable_inductor_pass()
    enable_inductor_pass()
    out, count = merged(model, x, only_the_pass)
    torch.testing.assert_close(out, model(x), rtol=1e-4, atol=1e-5)
    assert count == 2 and config.efficient_conv_bn_eval_fx_passes
    disable_inductor_pass()
    assert not config.efficient_conv_bn_eval_fx_passes


@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="inductor needs g++ or clang++")
@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_compiled_by_inductor(inductor, backend):
    model, x = transposed(), torch.randn(2, 4, 6, 6)
    expected = model(x)
    tune_mode(model, backend=backend)
    out, count = merged(model, x, "inductor")
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
    assert count == (2 if backend == "inductor" else 0)
