"""Patches and the error on hidden pixels, against NumPy."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from flambeau.objectives.reconstruction import masked_error, normalise_patches, patchify, unpatchify


@pytest.mark.parametrize(
    ("size", "patch"), [((8, 12), 4), ((6, 10), (3, 5)), ((8, 4, 6), (2, 4, 3)), ((9,), 3), ((4, 4), 4)]
)
def test_patches_put_together_are_the_image(size, patch):
    x = torch.randn(2, 3, *size)
    assert torch.equal(unpatchify(patchify(x, patch), patch, size), x)


def test_patches_are_those_of_unfold():
    x = torch.randn(2, 3, 6, 8)
    assert torch.equal(patchify(x, (2, 4)), F.unfold(x, (2, 4), stride=(2, 4)).transpose(1, 2))


def test_sizes_that_do_not_divide():
    with pytest.raises(ValueError, match="8 x 9 pixels cannot be cut into patches of 4"):
        patchify(torch.rand(1, 1, 8, 9), 4)
    with pytest.raises(ValueError, match=r"patches must be \[batch, 4, channels x 16\]"):
        unpatchify(torch.rand(1, 5, 16), 4, (8, 8))


def test_normalised_patches():
    patches = torch.randn(3, 4, 16) * 7 + 2
    found = normalise_patches(patches).numpy()
    p = patches.numpy()
    expected = (p - p.mean(-1, keepdims=True)) / np.sqrt(p.var(-1, ddof=1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert (normalise_patches(torch.full((1, 2, 9), 0.3)) == 0).all()
    with pytest.raises(ValueError, match="single value"):
        normalise_patches(torch.rand(1, 2, 1))


@pytest.mark.parametrize("kind", ["l1", "l2"])
def test_error_is_the_mean_over_hidden_pixels(kind):
    generator = torch.Generator().manual_seed(0)
    prediction, target = torch.randn(2, 4, 3, 8, 6, generator=generator)
    mask = torch.rand(4, 1, 8, 6, generator=generator) < 0.3
    difference = (prediction - target).numpy()[np.broadcast_to(mask.numpy(), prediction.shape)]
    expected = np.abs(difference).mean() if kind == "l1" else np.square(difference).mean()
    assert masked_error(prediction, target, mask, kind).item() == pytest.approx(float(expected), rel=1e-6)


def test_error_ignores_the_rest_and_the_size_of_the_mask():
    prediction = torch.randn(2, 3, 8, 8, requires_grad=True)
    mask = torch.zeros(2, 1, 8, 8, dtype=torch.bool)
    mask[:, :, 2:5, 3:7] = True
    masked_error(prediction, torch.zeros(2, 3, 8, 8), mask).backward()
    inside = mask.expand_as(prediction)
    assert (prediction.grad[~inside] == 0).all() and (prediction.grad[inside] != 0).all()
    # An error of one everywhere is one under any mask.
    for share in (0.1, 0.9):
        some = torch.rand(2, 1, 8, 8) < share
        assert masked_error(torch.ones(2, 3, 8, 8), torch.zeros(2, 3, 8, 8), some).item() == pytest.approx(1)


def test_hidden_values_that_are_not_finite_elsewhere_do_not_matter():
    prediction = torch.tensor([[1.0, float("nan")]], requires_grad=True)
    loss = masked_error(prediction, torch.zeros(1, 2), torch.tensor([[True, False]]))
    loss.backward()
    assert loss.item() == 1 and prediction.grad.tolist() == [[1.0, 0.0]]


def test_bad_errors():
    x = torch.rand(1, 1, 4, 4)
    with pytest.raises(ValueError, match="hides nothing"):
        masked_error(x, x, torch.zeros(1, 1, 4, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match="differ in shape"):
        masked_error(x, x[..., :2], torch.ones(1, 1, 4, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match="broadcast"):
        masked_error(x, x, torch.ones(1, 2, 4, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match="kind must be"):
        masked_error(x, x, torch.ones(1, 1, 4, 4, dtype=torch.bool), "huber")
