import pytest
import torch

from flambeau.models.vision.vit import DropPath, ViT


def small(**changes):
    torch.manual_seed(0)
    return ViT(**{"image_size": (32, 24), "patch": 8, "width": 32, "depth": 2, "heads": 4, "in_channels": 2} | changes)


def test_size_is_that_of_the_published_small_model():
    with torch.device("meta"):
        assert sum(p.numel() for p in ViT(classes=1000).parameters()) == 22_050_664


def test_agrees_with_the_implementation_of_transformers():
    transformers = pytest.importorskip("transformers", reason="needs the extra hf: pip install 'flambeau[hf]'")
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128, image_size=32, patch_size=8,
        num_channels=3, layer_norm_eps=1e-6, hidden_act="gelu",
    )  # fmt: skip
    peer = transformers.ViTModel(config, add_pooling_layer=False).eval()
    ours = ViT((32, 32), 8, 32, 2, 4).eval()
    theirs = peer.state_dict()
    if "layers.0.attention.q_proj.weight" not in theirs:
        pytest.skip("the parameter names are those of transformers 5")
    new = {
        "cls_token": theirs["embeddings.cls_token"],
        "pos_embed": theirs["embeddings.position_embeddings"],
    }
    for kind in ("weight", "bias"):
        new[f"patch_embed.proj.{kind}"] = theirs[f"embeddings.patch_embeddings.projection.{kind}"]
        new[f"norm.{kind}"] = theirs[f"layernorm.{kind}"]
        for n in range(2):
            qkv = [theirs[f"layers.{n}.attention.{name}_proj.{kind}"] for name in "qkv"]
            new[f"blocks.{n}.attn.qkv.{kind}"] = torch.cat(qkv)
            new[f"blocks.{n}.attn.proj.{kind}"] = theirs[f"layers.{n}.attention.o_proj.{kind}"]
            new[f"blocks.{n}.norm1.{kind}"] = theirs[f"layers.{n}.layernorm_before.{kind}"]
            new[f"blocks.{n}.norm2.{kind}"] = theirs[f"layers.{n}.layernorm_after.{kind}"]
            for name in ("fc1", "fc2"):
                new[f"blocks.{n}.mlp.{name}.{kind}"] = theirs[f"layers.{n}.mlp.{name}.{kind}"]
    ours.load_state_dict(new)
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(ours.tokens(x), peer(x).last_hidden_state, rtol=1e-4, atol=1e-5)


def test_positions_are_untouched_at_the_native_size_and_interpolated_at_others():
    model = small()
    assert model.positions((4, 3)) is model.pos_embed
    larger = model.positions((8, 6))
    assert larger.shape == (1, 1 + 48, 32)
    assert torch.equal(larger[:, :1], model.pos_embed[:, :1])
    with torch.no_grad():
        model.pos_embed.fill_(0.5)
    torch.testing.assert_close(model.positions((8, 6)), torch.full((1, 49, 32), 0.5))
    assert model(torch.randn(3, 2, 64, 48)).shape == (3, 32)


def test_tokens_are_class_tokens_and_then_patches_in_raster_order():
    model = small(class_tokens=2, depth=0)
    with torch.no_grad():
        model.pos_embed.zero_()
        model.patch_embed.proj.weight.zero_()
        model.patch_embed.proj.weight[0, 0] = 1 / 64
    x = torch.zeros(1, 2, 32, 24)
    x[0, 0, 8:16, 16:24] = 5.0  # row 1, column 2 of 4 x 3
    patches = model.embed(x)[0, 2:, 0]
    assert patches.argmax() == 1 * 3 + 2 and torch.equal(model.embed(x)[:, :2], model.cls_token)


def test_without_class_tokens_the_patches_are_averaged():
    model = small(class_tokens=0, classes=5).eval()
    x = torch.randn(2, 2, 32, 24)
    torch.testing.assert_close(model(x), model.head(model.tokens(x).mean(1)))


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    torch.manual_seed(0)
    x = torch.ones(20_000, 1, 1)
    y = DropPath(0.3).train()(x)
    assert y.unique().tolist() == pytest.approx([0.0, 1 / 0.7])
    assert abs(y.mean().item() - 1) < 0.02
    assert torch.equal(DropPath(0.3).eval()(x), x)


def test_bad_sizes_are_named():
    with pytest.raises(ValueError, match="30 x 24 pixels is not divisible"):
        small(image_size=(30, 24))
    with pytest.raises(ValueError, match="divisible by heads"):
        small(heads=5)
    with pytest.raises(ValueError, match=r"\[batch, 2, height, width\], got \[1, 3, 32, 24\]"):
        small()(torch.randn(1, 3, 32, 24))
    with pytest.raises(ValueError, match="not divisible"):
        small()(torch.randn(1, 2, 33, 24))
