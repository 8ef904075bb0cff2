"""A network cut down to some of its modules computes the same, and nothing else."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from flambeau.models.vision import resnet18
from flambeau.training.distillation import build_sequential, freeze, hooks

STEM = ["conv1", "bn1", "relu", "maxpool", "layer1"]


def make_resnet():
    torch.manual_seed(0)
    return resnet18(classes=10).eval(), torch.randn(2, 3, 32, 32)


def test_a_stem_gives_the_full_models_layer_bitwise_and_runs_nothing_else():
    model, x = make_resnet()
    cut = build_sequential(model, STEM, example=x)
    with hooks(model, ["layer1"]) as io:
        model(x)
    calls = []
    handles = [
        module.register_forward_pre_hook(lambda m, _, name=name: calls.append(name))
        for name, module in model.named_modules()
    ]
    output = cut(x)
    for handle in handles:
        handle.remove()
    assert torch.equal(output, io["layer1"]["output"])
    assert calls and all(name.split(".")[0] in STEM for name in calls)
    assert cut.conv1 is model.conv1
    with FlopCounterMode(display=False) as part:
        cut(x)
    with FlopCounterMode(display=False) as whole:
        model(x)
    convolutions = sum(
        2 * 16 * 16 * 64 * 3 * 49 if name == "conv1" else 4 * 2 * 8 * 8 * 64 * 64 * 9 for name in ("conv1", "layer1")
    )
    assert part.get_total_flops() == 2 * convolutions < whole.get_total_flops() / 2


def test_nested_paths_keep_their_names_and_share_their_weights():
    model = nn.Module()
    model.features = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Sequential(nn.Conv2d(4, 5, 1), nn.ReLU())
    )
    x = torch.randn(1, 3, 6, 6)
    cut = build_sequential(model, ["features.0", "features.1", "features.2.0"])
    assert [name for name, _ in cut.named_parameters()] == [
        "features.0.weight", "features.0.bias", "features.2.0.weight", "features.2.0.bias"
    ]  # fmt: skip
    expected = model.features[2][0](model.features[1](model.features[0](x)))
    assert torch.equal(cut(x), expected)
    assert cut.get_submodule("features.2.0") is model.features[2][0]


def test_adaptations_stand_for_functions_between_modules():
    model, x = make_resnet()
    paths = [*STEM, "layer2", "layer3", "layer4", "avgpool", "fc"]
    with pytest.raises(ValueError, match=r"fc fails on \[2, 512, 1, 1\].*has to be an adaptation"):
        build_sequential(model, paths, example=x)
    whole = build_sequential(model, [*paths[:-1], "+flat", "fc"], {"flat": nn.Flatten()}, example=x)
    assert torch.equal(whole(x), model(x))
    with pytest.raises(ValueError, match=r"\+flatten is not among the adaptations \['flat'\]"):
        build_sequential(model, [*paths[:-1], "+flatten", "fc"], {"flat": nn.Flatten()})


@pytest.mark.parametrize(
    "paths, told",
    [
        (["layer2", "layer1"], "is not the order of ResNet: it calls them in the order"),
        (["conv1", "layer2"], "layer2 fails on"),
        (["conv1", "layer1.0.conv1", "conv1"], "would run the same module twice"),
        (["layer1", "layer1.0"], "would run the same module twice"),
        (["layer1.0", "layer2.0", "layer1.1"], "layer1 is left and entered again at layer1.1"),
        (["layer1.0.conv1", "conv1"], "layer1.0.conv1 gives 64 channels, conv1 takes 3"),
        (["conv1", "bn"], "no module 'bn'; the nearest paths are bn1"),
        ([], "expected a list of module paths"),
        ("conv1", "expected a list of module paths"),
    ],
)
def test_an_order_that_cannot_be_executed_is_refused(paths, told):
    model, x = make_resnet()
    if paths == ["conv1", "layer2"]:
        model.layer2[0].conv1 = nn.Conv2d(128, 128, 3, padding=1, bias=False)
        with pytest.raises((ValueError, RuntimeError)):
            build_sequential(model, paths, example=x)
        return
    with pytest.raises(ValueError, match=told.replace("(", r"\(")):
        build_sequential(model, paths, example=x)


def test_trying_an_order_changes_neither_statistics_nor_modes():
    model, x = make_resnet()
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    build_sequential(model, STEM, example=x)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())


def test_frozen_modules_by_path_class_and_parameter():
    model, _ = make_resnet()
    freeze(model, ["layer1", "instance(BatchNorm2d)", "fc.bias"])
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    expected = {
        name for name, _ in model.named_parameters()
        if name.startswith("layer1.") or "bn" in name or "downsample.1" in name or name == "fc.bias"
    }  # fmt: skip
    assert frozen == expected
    with pytest.raises(ValueError, match="no module 'layer9'"):
        freeze(model, ["layer9"])
    with pytest.raises(ValueError, match="names no class of torch.nn"):
        freeze(model, ["instance(BatchNorm9d)"])
    with pytest.raises(ValueError, match="has no GRU"):
        freeze(model, ["instance(GRU)"])
