import numpy as np
import pytest
import torch
from torch import nn

from flambeau.experiment.representation.attention_rollout import (
    attention_rollout,
    draw_rollout,
    recorded_attention,
    rollout_maps,
)
from flambeau.models.vision.vit import ViT
from flambeau.nn.attention.core import AttentionCore


def vit(class_tokens=1, depth=3):
    torch.manual_seed(0)
    network = ViT((12, 8), 4, 16, depth, 2, class_tokens=class_tokens)
    with torch.no_grad():
        for block in network.blocks:
            block.attn.qkv.weight.mul_(20)  # attention that is far from uniform
    return network.eval()


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_recorded_weights_are_those_that_the_core_uses(causal, masked):
    core = AttentionCore(causal, dropout=0.0)
    queries, keys, values = torch.randn(3, 2, 2, 5, 4)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]).bool() if masked else None
    with recorded_attention(core) as weights:
        out = core(queries, keys, values, mask=mask)
    assert len(weights) == 1
    torch.testing.assert_close(weights[0] @ values, out)


def test_the_model_computes_the_same_and_is_left_as_it_was():
    network, images = vit(), torch.rand(2, 3, 12, 8)
    plain = network(images)
    with recorded_attention(network) as weights:
        assert torch.equal(network(images), plain)
    assert [tuple(layer.shape) for layer in weights] == [(2, 2, 7, 7)] * 3
    network(images)
    assert len(weights) == 3
    assert not any(module._forward_pre_hooks for module in network.modules())


def test_rollout_is_the_product_of_the_layers_with_their_residuals():
    weights = [torch.rand(2, 3, 4, 4, dtype=torch.float64).softmax(3) for _ in range(3)]
    rolled = attention_rollout(weights).numpy()
    for case in range(2):
        expected = np.eye(4)
        for layer in weights:
            mixed = layer[case].numpy().mean(0) + np.eye(4)
            expected = mixed / mixed.sum(1, keepdims=True) @ expected  # as the paper writes it
        np.testing.assert_allclose(rolled[case], expected)
    np.testing.assert_allclose(rolled.sum(2), 1)


def test_uniform_attention_has_a_closed_form():
    network = vit(depth=3)
    with torch.no_grad():
        for block in network.blocks:
            block.attn.qkv.weight.zero_()
    with recorded_attention(network) as weights:
        network(torch.rand(1, 3, 12, 8))
    expected = torch.eye(7) / 8 + (1 - 1 / 8) / 7
    torch.testing.assert_close(attention_rollout(weights)[0], expected)
    torch.testing.assert_close(rollout_maps(network, torch.rand(1, 3, 12, 8)), torch.full((1, 3, 2), 1 / 6))


@pytest.mark.parametrize("class_tokens", [0, 1, 2])
def test_maps_have_the_grid_of_the_image_and_sum_to_one(class_tokens):
    network = vit(class_tokens).train()
    for size in [(12, 8), (8, 20)]:
        maps = rollout_maps(network, torch.rand(2, 3, *size))
        assert maps.shape == (2, size[0] // 4, size[1] // 4)
        torch.testing.assert_close(maps.sum((1, 2)), torch.ones(2))
    assert network.training


def test_a_patch_that_all_look_at_has_the_largest_share():
    network = vit()
    images = torch.full((1, 3, 12, 8), 0.5)
    with torch.no_grad():
        network.pos_embed.zero_()
        network.patch_embed.proj.weight.zero_()
        network.patch_embed.proj.weight[0] = 1.0  # channel 0 is a patch's brightness
        for block in network.blocks:
            block.attn.qkv.weight.zero_()
            block.attn.qkv.bias.zero_()
            block.attn.qkv.bias[:16] = 3.0
            block.attn.qkv.weight[16:32, 0] = 3.0  # keys grow with it
    images[:, :, 4:8, 4:8] = 1.0
    images[:, :, :4, :] = 0.0
    assert int(rollout_maps(network, images).flatten().argmax()) == 3


def test_figure_and_bad_input():
    network, images = vit(), torch.rand(3, 3, 12, 8)
    figure = draw_rollout(images, rollout_maps(network, images), ["a", "b", "c"])
    assert [axis.get_title() for axis in figure.axes[:3]] == ["a", "b", "c"]
    assert draw_rollout(images[:1, :1], rollout_maps(network, images[:1])).axes
    with pytest.raises(ValueError, match="Linear has no AttentionCore"), recorded_attention(nn.Linear(2, 2)):
        pass
    with pytest.raises(ValueError, match="at least one layer"):
        attention_rollout([])
    with pytest.raises(ValueError, match=r"residual must lie in \[0, 1\], got 2"):
        attention_rollout([torch.rand(1, 1, 2, 2)], residual=2)
