from functools import partial

import pytest
import torch
from torch import nn

from flambeau.models.vision.resnet import ResNet
from flambeau.models.vision.vit import ViT
from flambeau.training import LayerDecay, Trainer
from flambeau.training.layer_decay import layer_depths

SGD = partial(torch.optim.SGD, lr=0.5)


def vit(**keywords):
    return ViT((8, 8), 4, 8, 3, 2, in_channels=1, classes=4, **keywords)


def beit_scales(names, depth, decay):
    """BEiT's rule for a plain ViT, written out: layer 0 the embeddings, i + 1 the block i, depth + 1 the rest."""
    scales = {}
    for name in names:
        if name in ("cls_token", "mask_token", "pos_embed") or name.startswith("patch_embed"):
            layer = 0
        elif name.startswith("blocks"):
            layer = int(name.split(".")[1]) + 1
        else:
            layer = depth + 1
        scales[name] = decay ** (depth + 1 - layer)
    return scales


def rates(network, optimizer):
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    return {names[id(p)]: group["lr"] for group in optimizer.param_groups for p in group["params"]}


def test_a_vits_rates_are_those_of_beit():
    network = vit()
    found = rates(network, LayerDecay(SGD, network, 0.65)(network.parameters()))
    expected = {name: 0.5 * scale for name, scale in beit_scales(found, 3, 0.65).items()}
    assert found == pytest.approx(expected) and len(found) == len(list(network.parameters()))
    assert found["head.weight"] == found["norm.weight"] == 0.5
    assert found["pos_embed"] == pytest.approx(0.5 * 0.65**4)


def test_a_resnets_blocks_are_counted_through_its_stages():
    network = ResNet((2, 1), (4, 8), in_channels=1, classes=3, stem="small")
    found = rates(network, LayerDecay(SGD, network, 0.5)(network.parameters()))
    assert found["conv1.weight"] == found["bn1.bias"] == 0.5 * 0.5**4
    assert found["layer1.0.conv1.weight"] == 0.5 * 0.5**3
    assert found["layer1.1.bn2.weight"] == 0.5 * 0.5**2
    assert found["layer2.0.downsample.0.weight"] == 0.5 * 0.5
    assert found["fc.weight"] == 0.5


def test_names_may_have_a_prefix_and_more_than_ten_blocks():
    names = ["head.weight", "backbone.pos_embed", "backbone.norm.weight"]
    names += [f"backbone.blocks.{number}.attn.qkv.weight" for number in (11, 2, 0, 1, 10)]
    assert layer_depths(names) == [6, 0, 6, 5, 3, 1, 2, 4]


def test_one_step_moves_each_parameter_by_its_own_rate():
    network = vit()
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    scales = beit_scales(before, 3, 0.7)

    def loss(model, batch):
        return sum((parameter.sum() for parameter in model.parameters()), torch.zeros(()))

    def factor(step, total):
        return 0.5

    trainer = Trainer(steps=1, optimizer=LayerDecay(SGD, network, 0.7), schedule=factor)
    fit = trainer.fit(network, loss, lambda step, generator: torch.zeros(1))
    assert fit.history[0]["lr"] == 0.25  # the rate of the head
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(parameter, before[name] - 0.25 * scales[name])


def test_parameters_that_are_not_trained_have_no_rate():
    network = vit()
    network.patch_embed.requires_grad_(False)
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    assert not any("patch_embed" in name for name in rates(network, LayerDecay(SGD, network, 0.5)(trained)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: LayerDecay(SGD, vit(), 0.0), r"decay must lie in \(0, 1\], got 0.0"),
        (lambda: LayerDecay(SGD, vit(), 1.5), "decay must lie in"),
        (lambda: LayerDecay(SGD, nn.Linear(2, 3), 0.5), "parameters of blocks .*got weight, bias"),
        (lambda: LayerDecay(SGD, vit(), 0.5)(nn.Linear(2, 3).parameters()), "trained parameters of ViT .*got 2"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
