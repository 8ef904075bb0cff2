import pytest
import torch

from flambeau.models.vision.resnet import ResNet, resnet18, resnet34, resnet50

# Sizes of torchvision's ImageNet models.
PARAMETERS = [(resnet18, 11_689_512), (resnet34, 21_797_672), (resnet50, 25_557_032)]


@pytest.mark.parametrize("build, parameters", PARAMETERS)
def test_sizes_are_those_of_the_published_models(build, parameters):
    with torch.device("meta"):
        assert sum(p.numel() for p in build().parameters()) == parameters


def test_names_are_those_of_the_published_weights():
    with torch.device("meta"):
        names = set(resnet50().state_dict())
    assert {"conv1.weight", "bn1.running_mean", "layer1.0.downsample.0.weight", "layer4.2.conv3.weight"} <= names
    assert {"layer3.5.bn2.bias", "fc.weight"} <= names and not any("stem" in name for name in names)


def test_agrees_with_the_implementation_of_transformers():
    transformers = pytest.importorskip("transformers", reason="needs the extra hf: pip install 'flambeau[hf]'")
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 2], layer_type="basic", num_labels=5, num_channels=4
    )
    peer = transformers.ResNetForImageClassification(config).eval()
    ours = ResNet((1, 2), (8, 16), in_channels=4, classes=5).eval()
    # transformers walks its modules in the order conv, norm; shortcut first within a block.
    names = list(ours.state_dict())
    state = {}
    for name in names:
        there = (
            name.replace("conv1.weight", "resnet.embedder.embedder.convolution.weight")
            if name == "conv1.weight"
            else name
        )
        if name.startswith("bn1."):
            there = name.replace("bn1.", "resnet.embedder.embedder.normalization.")
        if name.startswith("layer"):
            stage, block, *rest = name.split(".")
            rest_name = ".".join(rest)
            for ours_part, theirs_part in (
                ("conv1.", "layer.0.convolution."),
                ("bn1.", "layer.0.normalization."),
                ("conv2.", "layer.1.convolution."),
                ("bn2.", "layer.1.normalization."),
                ("downsample.0.", "shortcut.convolution."),
                ("downsample.1.", "shortcut.normalization."),
            ):
                rest_name = rest_name.replace(ours_part, theirs_part)
            there = f"resnet.encoder.stages.{int(stage[5:]) - 1}.layers.{block}.{rest_name}"
        there = there.replace("fc.", "classifier.1.")
        state[name] = peer.state_dict()[there]
    ours.load_state_dict(state)
    x = torch.randn(2, 4, 64, 48)
    torch.testing.assert_close(ours(x), peer(x).logits, rtol=1e-4, atol=1e-5)


def test_stages_halve_the_resolution_and_end_in_the_same_logits():
    model = ResNet((1, 1, 1), (8, 16, 32), bottleneck=True, in_channels=1, classes=3, stem="small").eval()
    x = torch.randn(2, 1, 32, 24)
    maps = model.stages(x)
    assert [tuple(m.shape[1:]) for m in maps.values()] == [(8, 32, 24), (32, 32, 24), (64, 16, 12), (128, 8, 6)]
    torch.testing.assert_close(model.fc(maps["layer3"].mean((2, 3))), model(x))


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="blocks and widths"):
        ResNet((1, 1), (8,))
    with pytest.raises(ValueError, match="stem"):
        ResNet(stem="huge")
