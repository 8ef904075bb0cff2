"""Digits on textures: where they are, what they are, and that views of a digit stay together."""

import pytest
import torch

from flambeau.data import digits
from flambeau.data.images.digit_canvases import digit_canvases


def test_each_canvas_holds_its_digit():
    canvases = digit_canvases(size=16, digit=8, views=2, contrast=0.0)
    source = digits()
    assert canvases.images.shape == (3594, 1, 16, 16)
    assert torch.equal(canvases.labels, source.labels.repeat_interleave(2))
    for row in (0, 1, 700, 3593):  # on black the digit is all there is
        assert canvases.images[row].sum().item() == pytest.approx(source.images[row // 2].sum().item(), rel=1e-4)
    assert not torch.equal(canvases.images[0], canvases.images[1])


def test_textures_seeds_and_groups():
    canvases = digit_canvases(size=16, digit=8, views=2)
    assert torch.equal(canvases.images, digit_canvases(size=16, digit=8, views=2).images)
    assert not torch.equal(canvases.images, digit_canvases(size=16, digit=8, views=2, seed=1).images)
    assert canvases.images.std((1, 2, 3)).min() > 0.02
    train, test = canvases.split((0.8, 0.2))
    assert not set(train.groups.tolist()) & set(test.groups.tolist())


def test_bad_sizes():
    for options, message in (
        ({"size": 8, "digit": 9}, "digit must lie in"),
        ({"views": 0}, "views must be at least 1"),
        ({"contrast": 2.0}, "contrast must lie in"),
        ({"size": 600, "digit": 8}, "smallest photograph"),
        ({"textures": ()}, "textures"),
        ({"textures": ("wood",)}, "photo must be one of"),
    ):
        with pytest.raises(ValueError, match=message):
            digit_canvases(**options)
