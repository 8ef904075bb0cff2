"""MAE: what the encoder sees, and what counts in the loss."""

import pytest
import torch

from flambeau.models.vision import ViT
from flambeau.objectives.masking import random_cells
from flambeau.objectives.reconstruction import normalise_patches, patchify
from flambeau.training.self_supervised.mae import MAE


def mae(class_tokens=1, **options):
    torch.manual_seed(0)
    vit = ViT((8, 12), 4, 16, 2, 2, in_channels=2, class_tokens=class_tokens)
    return MAE(vit, width=12, depth=1, heads=2, **options)


def batch():
    generator = torch.Generator().manual_seed(1)
    return torch.rand(5, 2, 8, 12, generator=generator), random_cells(5, (2, 3), 2, generator)


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("class_tokens", [0, 1])
def test_loss_is_its_definition(normalise, class_tokens):
    (x, visible), model = batch(), mae(class_tokens, normalise=normalise)
    out = model(x, visible)
    target = patchify(x, 4)
    target = normalise_patches(target) if normalise else target
    hidden = ~visible.flatten(1)
    expected = (out["reconstruction"] - target).square().mean(-1)[hidden].mean()
    assert out["loss"].item() == pytest.approx(expected.item(), rel=1e-5)
    out["loss"].backward()
    assert all(p.grad is not None for p in model.parameters())


def test_hidden_pixels_do_not_reach_the_encoder():
    (x, visible), model = batch(), mae(normalise=False)
    pixels = visible.repeat_interleave(4, 1).repeat_interleave(4, 2)[:, None]
    other = torch.where(pixels, x, torch.rand(x.shape))
    assert torch.equal(model(x, visible)["reconstruction"], model(other, visible)["reconstruction"])
    other = torch.where(pixels, torch.rand(x.shape), x)
    assert not torch.equal(model(x, visible)["reconstruction"], model(other, visible)["reconstruction"])


def test_reconstruction_keeps_what_was_visible():
    (x, visible), model = batch(), mae()
    drawn = model.reconstruct(x, visible)
    pixels = visible.repeat_interleave(4, 1).repeat_interleave(4, 2)[:, None].expand_as(x)
    assert torch.equal(drawn[pixels], x[pixels]) and not torch.equal(drawn, x)


def test_views_are_joined_and_masks_drawn_from_the_global_generator():
    (x, visible), model = batch(), mae()
    both = model([x, x], torch.cat([visible, visible]))["loss"]
    assert both.item() == pytest.approx(model(x, visible)["loss"].item(), rel=1e-5)
    torch.manual_seed(3)
    first = model(x)["loss"]
    torch.manual_seed(3)
    assert torch.equal(first, model(x)["loss"])


def test_bad_arguments():
    with pytest.raises(ValueError, match="mask_ratio must lie in"):
        mae(mask_ratio=1.0)
    (x, visible), model = batch(), mae()
    with pytest.raises(ValueError, match=r"images must have \(2, 3\) patches"):
        model(torch.rand(5, 2, 8, 8))
    for bad in (torch.zeros_like(visible), torch.ones_like(visible), visible | (torch.arange(5) == 0).view(5, 1, 1)):
        with pytest.raises(ValueError, match="equally many patches"):
            model(x, bad)
