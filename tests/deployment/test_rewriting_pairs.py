"""Pairs of modules are found alike in a symbolic trace and by watching a forward pass, and only where they are safe."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from flambeau.deployment.rewriting.conv_bn_pairs import find_conv_bn
from flambeau.deployment.rewriting.module_pairs import module_pairs, trace_uses, watch_uses
from flambeau.models.vision import ResNet

CONV, NORM = (nn.Conv2d, nn.Linear), (nn.BatchNorm2d, nn.BatchNorm1d)


class Net(nn.Module):
    """Two convolutions and two normalisations, used as the subclass says."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.bn, self.bn2 = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.relu, self.same = nn.ReLU(inplace=True), nn.Identity()


class Residual(Net):
    def forward(self, x):
        y = self.bn(self.a(x)) + x
        return self.relu(self.bn2(self.b(y)) + y)


class SharedConv(Net):
    def forward(self, x):
        return self.bn2(self.b(self.bn(self.a(self.a(x)))))


class SharedNorm(Net):
    def forward(self, x):
        return self.bn(self.b(self.bn(self.a(x))))


class TwoReaders(Net):
    def forward(self, x):
        y = self.a(x)
        return self.bn2(self.b(self.bn(y) + y))


class TwoNorms(Net):
    def forward(self, x):
        y = self.a(x)
        return self.bn(y) + self.bn2(y)


class ReadThroughIdentity(Net):
    def forward(self, x):
        y = self.a(x)
        return self.bn2(self.b(self.bn(y))) + self.same(y)


class ReluBetween(Net):
    def forward(self, x):
        return self.bn2(self.b(self.bn(self.relu(self.a(x)))))


class NormFirst(Net):
    def forward(self, x):
        return self.b(self.relu(self.bn(x)))


class Functional(Net):
    def forward(self, x):
        y = self.a(x)
        y = F.batch_norm(y, self.bn.running_mean, self.bn.running_var, self.bn.weight, self.bn.bias)
        return self.bn2(self.b(y))


class ReturnsBoth(Net):
    def forward(self, x):
        y = self.a(x)
        return {"out": self.bn2(self.b(self.bn(y))), "features": [y]}


class ReadsInPlace(Net):
    def forward(self, x):
        y = self.a(x)
        z = self.bn(y)
        y.mul_(2)
        return self.bn2(self.b(z))


class Nested(Net):
    def __init__(self):
        super().__init__()
        self.block = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))

    def forward(self, x):
        return self.block(self.bn(self.a(x)))


EXPECTED = {
    Residual: ([("a", "bn"), ("b", "bn2")], {}),
    SharedConv: ([("b", "bn2")], {"bn": "a is shared: called 2 times"}),
    SharedNorm: ([], {"bn": "shared: called 2 times", "bn2": "not called"}),
    TwoReaders: ([("b", "bn2")], {"bn": "the output of a is also used by add"}),
    TwoNorms: ([], {"bn": "the output of a is also used by bn2", "bn2": "the output of a is also used by bn"}),
    ReadThroughIdentity: ([("b", "bn2")], {"bn": "the output of a is also used by same"}),
    ReluBetween: ([("b", "bn2")], {"bn": "its input comes from relu, a ReLU"}),
    NormFirst: ([], {"bn": "its input comes from", "bn2": "not called"}),
    Functional: ([("b", "bn2")], {"bn": "not called"}),
    ReturnsBoth: ([("b", "bn2")], {"bn": "the output of a is also used by the model's output"}),
    ReadsInPlace: ([("b", "bn2")], {"bn": "the output of a is also used by mul_"}),
    Nested: ([("a", "bn"), ("block.0", "block.1")], {"bn2": "not called"}),
}


@pytest.mark.parametrize("front_end", ["trace", "watch"])
@pytest.mark.parametrize("kind", EXPECTED, ids=lambda kind: kind.__name__)
def test_the_pairs_are_exactly_these(kind, front_end):
    model, (pairs, reasons) = kind(), EXPECTED[kind]
    if front_end == "trace":
        uses = trace_uses(model, CONV + NORM)
    else:
        uses = watch_uses(model, torch.randn(2, 3, 5, 5), CONV + NORM)
    found, others = module_pairs(model, uses, CONV, NORM)
    assert found == pairs and {name for name, _ in others} == set(reasons)
    for name, reason in others:
        assert reason.startswith(reasons[name]), reason


def test_a_residual_network_gives_all_its_pairs():
    model = ResNet((2, 2), (4, 8), in_channels=1, classes=3, stem="small")
    pairs, skipped = find_conv_bn(model)
    watched = watch_uses(model, torch.randn(1, 1, 8, 8), CONV + NORM)
    assert [(pair.conv_name, pair.bn_name) for pair in pairs] == module_pairs(model, watched, CONV, NORM)[0]
    assert len(pairs) == sum(isinstance(module, nn.BatchNorm2d) for module in model.modules()) == 10 and not skipped
    assert watched.bytes["conv1"] == 1 * 4 * 8 * 8 * 4


class OnlyInTraining(Net):
    def forward(self, x):
        y = self.a(x)
        z = self.bn(y)
        return (z, y.mean()) if self.training else z


@pytest.mark.parametrize("training", [True, False])
def test_a_use_in_the_other_mode_counts(training):
    model = OnlyInTraining().train(training)
    found, others = module_pairs(model, trace_uses(model, CONV + NORM), CONV, NORM)
    assert found == [] and others[0][1] == "the output of a is also used by mean"
    assert all(module.training is training for module in model.modules())


def test_watching_leaves_statistics_random_state_and_modes_alone():
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Dropout()).train()
    x, before = torch.randn(2, 3, 4, 4), {k: v.clone() for k, v in model.state_dict().items()}
    state = torch.get_rng_state()
    watch_uses(model, x, CONV + NORM)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model[1].training and not any(module._forward_hooks for module in model.modules())


class Untraceable(Net):
    def forward(self, x, double=False):
        if x.sum() > 1e9:
            return x
        return self.bn2(self.b(self.bn(self.a(2 * x if double else x))))


def test_a_model_that_cannot_be_traced_needs_example_inputs():
    model, x = Untraceable(), torch.randn(2, 3, 4, 4)
    with pytest.raises(ValueError, match="example_inputs: Untraceable cannot be traced symbolically"):
        find_conv_bn(model)
    for inputs in (x, (x, True), [x], {"x": x, "double": True}):
        assert len(find_conv_bn(model, inputs)[0]) == 2


class Standardised(nn.Conv2d):
    def forward(self, x):
        return F.conv2d(x, (self.weight - self.weight.mean()) / self.weight.std(), self.bias)


def hooked(which, how):
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    getattr(model[which], how)(lambda *_: None)
    return model


SKIPPED = {
    "forward hook": (lambda: hooked(0, "register_forward_hook"), "hooks are registered"),
    "backward hook": (lambda: hooked(0, "register_full_backward_hook"), "hooks are registered"),
    "pre-hook of the normalisation": (lambda: hooked(1, "register_forward_pre_hook"), "hooks are registered"),
    "subclass": (lambda: nn.Sequential(Standardised(3, 4, 1), nn.BatchNorm2d(4)), "Standardised has a forward"),
    "no statistics": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)),
        "no running statistics",
    ),
    "quantisation-aware": (
        lambda: nn.Sequential(
            torch.ao.nn.qat.Conv2d(3, 4, 1, qconfig=torch.ao.quantization.get_default_qat_qconfig()),
            nn.BatchNorm2d(4),
        ),
        "Conv2d has a forward of its own",
    ),
    "instance norm": (lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.InstanceNorm2d(4)), "it has no batch norm"),
    "lazy": (lambda: nn.Sequential(nn.LazyConv2d(4, 1), nn.BatchNorm2d(4)), "LazyConv2d has no shape"),
}


@pytest.mark.parametrize("case", SKIPPED)
def test_what_is_left_out_and_why(case):
    make, reason = SKIPPED[case]
    with pytest.raises(ValueError, match=f"no pair of a convolution and a batch normalisation in .*{reason}"):
        find_conv_bn(make())


def test_a_pre_hook_of_the_convolution_is_harmless():
    assert len(find_conv_bn(hooked(0, "register_forward_pre_hook"))[0]) == 1


def test_choosing_by_name_and_by_gain():
    model, x = ResNet((1, 1), (4, 8), in_channels=1, classes=3, stem="small"), torch.randn(1, 1, 8, 8)
    names = [pair.conv_name for pair in find_conv_bn(model)[0]]
    assert [p.conv_name for p in find_conv_bn(model, include=["layer1.*"])[0]] == names[1:3]
    assert [p.conv_name for p in find_conv_bn(model, exclude=["layer1.0.conv1", "*.bn2"])[0]] == [
        "conv1",
        "layer2.0.conv1",
        "layer2.0.downsample.0",
    ]
    pairs, skipped = find_conv_bn(model, x, min_gain=0)
    assert ("layer2.0.bn2", "saves 512 bytes for a copy of 2304") in skipped
    assert all(pair.map_bytes >= pair.weight_bytes for pair in pairs) and len(pairs) + len(skipped) == len(names)
    with pytest.raises(ValueError, match="min_gain needs example_inputs"):
        find_conv_bn(model, min_gain=0)
    with pytest.raises(ValueError, match="left out by include or exclude"):
        find_conv_bn(model, include=["layer9.*"])


def test_features_must_match_and_a_compiled_model_is_refused():
    with pytest.raises(ValueError, match="0 has 4 outputs, 1 5 features"):
        find_conv_bn(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(5)))
    with pytest.raises(TypeError, match="model is compiled"):
        find_conv_bn(torch.compile(Residual(), backend="eager"))
