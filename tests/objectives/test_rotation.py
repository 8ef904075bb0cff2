"""Quarter turns as labels, for images that are square and that are not."""

import pytest
import torch

from flambeau.objectives.rotation import random_turns


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_labels_are_the_quarters_turned():
    images = torch.rand(40, 3, 6, 6)
    turned, labels = random_turns(images, generator=seeded())
    assert sorted(labels.unique().tolist()) == [0, 1, 2, 3]
    for image, other, label in zip(images, turned, labels.tolist()):
        assert torch.equal(other, torch.rot90(image, label, (1, 2)))
        assert torch.equal(torch.rot90(other, 4 - label, (1, 2)), image)  # four quarters are none


def test_images_that_are_not_square():
    images = torch.rand(40, 2, 4, 7)
    with pytest.raises(ValueError, match="rotation needs square images, got 4 x 7"):
        random_turns(images)
    turned, labels = random_turns(images, "half", seeded())
    assert sorted(labels.unique().tolist()) == [0, 2] and turned.shape == images.shape
    for image, other, label in zip(images, turned, labels.tolist()):
        assert torch.equal(other, torch.rot90(image, label, (1, 2)))
    turned, labels = random_turns(images, "pad", seeded())
    assert sorted(labels.unique().tolist()) == [0, 1, 2, 3] and turned.shape == (40, 2, 7, 7)
    for image, other, label in zip(images, turned, labels.tolist()):
        padded = torch.rot90(other, -label, (1, 2))
        assert torch.equal(padded[:, 1:5], image) and (padded[:, [0, 5, 6]] == 0).all()
    with pytest.raises(ValueError, match="not_square must be"):
        random_turns(images, "crop")
