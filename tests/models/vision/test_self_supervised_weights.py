"""Weights of self-supervised checkpoints in a plain network, from files as the projects write them."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from flambeau.models.vision.convnext import ConvNeXt
from flambeau.models.vision.resnet import ResNet
from flambeau.models.vision.self_supervised_weights import backbone_state, load_backbone


def network(seed, classes=5):
    torch.manual_seed(seed)
    return ResNet((1, 1), (4, 6), bottleneck=True, in_channels=1, classes=classes)


def body():
    return {name: value for name, value in network(0).state_dict().items() if not name.startswith("fc.")}


def prefixed(prefix, state):
    return {prefix + name: value for name, value in state.items()}


OTHER = {"conv1.weight": torch.zeros(4, 1, 7, 7), "fc.weight": torch.zeros(9, 24)}
CHECKPOINTS = {
    "spark": {"module": body(), "arch": "resnet50"},
    "spark with decoder": {
        "epoch": 1599,
        "module": {**prefixed("sparse_encoder.sp_cnn.", body()), "dense_decoder.proj.weight": torch.zeros(3, 4, 1, 1)},
    },
    "spark of the paper": {"module": prefixed("model.", body())},
    "swav": {
        "state_dict": prefixed("model.", {**body(), "projection_head.0.weight": torch.zeros(2, 2, 1, 1)}),
        "epoch": 3,
    },
    "moco": {
        "state_dict": {
            **prefixed("encoder_k.", OTHER),
            **prefixed("encoder_q.", {**body(), "fc.weight": torch.zeros(5, 24), "fc.bias": torch.zeros(5)}),
            "queue": torch.zeros(3, 4),
        }
    },
    "moco of its authors": {"state_dict": prefixed("module.encoder_q.", {**body(), "fc.0.weight": torch.zeros(2, 2)})},
    "byol": {
        "state_dict": {
            **prefixed("online_network.encoder.", body()),
            "online_network.projector.model.0.weight": torch.zeros(3, 4),
            **prefixed("target_network.encoder.", OTHER),
        }
    },
    "flambeau, contrastive": {
        **prefixed("encoder.0.backbone.", body()),
        **prefixed("target.module.0.backbone.", OTHER),
    },
    "flambeau": {**prefixed("backbone.", body()), "decoder.head.weight": torch.zeros(1, 4, 1, 1)},
}


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_all_but_the_head_is_loaded(kind, tmp_path):
    path = tmp_path / "checkpoint.pth"
    torch.save(CHECKPOINTS[kind], path)
    loaded = network(1)
    head = loaded.fc.weight.clone()
    assert load_backbone(loaded, path) == ["fc.weight", "fc.bias"]
    for name, value in body().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    assert torch.equal(loaded.fc.weight, head)
    assert set(backbone_state(CHECKPOINTS[kind])) >= set(body())


def test_safetensors(tmp_path):
    save_file({name: value.contiguous() for name, value in CHECKPOINTS["flambeau"].items()}, tmp_path / "m.safetensors")
    loaded = network(1)
    load_backbone(loaded, tmp_path / "m.safetensors")
    assert torch.equal(loaded.conv1.weight, network(0).conv1.weight)


def test_a_head_of_norm_and_linear_layer():
    torch.manual_seed(0)
    source, target = (ConvNeXt((1, 1), (4, 6), in_channels=1, classes=n) for n in (3, 4))
    missing = load_backbone(target, prefixed("backbone.", source.state_dict()))
    assert missing == ["classifier.0.weight", "classifier.0.bias", "classifier.2.weight", "classifier.2.bias"]
    assert torch.equal(source.features[1][0].block[3].weight, target.features[1][0].block[3].weight)


class Code:
    def __reduce__(self):
        return print, ("executed",)


def test_bad_weights(tmp_path, capsys):
    torch.save({"state_dict": body(), "callback": Code()}, tmp_path / "code.ckpt")
    with pytest.raises(ValueError, match=r"code.ckpt: not a file of plain tensors .* save its state dict alone"):
        load_backbone(network(1), tmp_path / "code.ckpt")
    assert "executed" not in capsys.readouterr().out
    (tmp_path / "broken.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"broken.safetensors: not a file of plain tensors"):
        backbone_state(tmp_path / "broken.safetensors")
    torch.save([1], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="holds a list"):
        backbone_state(tmp_path / "list.pth")
    for weights, message in [
        ({"epoch": 3}, "no tensors; they have epoch"),
        ({"a": torch.zeros(3)}, "no encoder with a convolution"),
        ({**body(), "conv1.weight": torch.zeros(4, 3, 7, 7)}, r"conv1.weight has shape \[4, 1, 7, 7\] in the network"),
        (
            {name: v for name, v in body().items() if "layer2" not in name},
            r"no 'layer2.0.conv1.weight' \(24 are missing",
        ),
        ({name: v for name, v in body().items() if "bn3" not in name}, "no 'layer1.0.bn3.weight'"),
    ]:
        with pytest.raises(ValueError, match=message):
            load_backbone(network(1), weights)
    loaded = nn.Sequential(nn.Conv2d(1, 2, 3))
    with pytest.raises(ValueError, match="no '0.weight'"):
        load_backbone(loaded, body())
