"""Disturbed digits, and the affine changes they are made with."""

import pytest
import torch

from flambeau.data.augment.affine import random_affine
from flambeau.data.images.augmented_digits import augmented_digits


def test_the_parts_and_the_labels():
    train, test = augmented_digits("train", views=2, seed=3), augmented_digits("test", seed=3)
    assert train.images.shape == (2000, 1, 16, 16) and len(test) == 797
    few = augmented_digits(views=2, labelled=10, seed=3)
    assert torch.equal(few.images, train.images) and (few.labels >= 0).sum() == 200
    assert torch.equal(few.labels[few.labels >= 0], train.labels[few.labels >= 0])
    alone = augmented_digits(views=2, labelled=10, unlabelled=False, seed=3)
    assert torch.equal(alone.labels.bincount(), torch.full((10,), 20))
    assert not torch.equal(train.images[:1000], train.images[1000:])
    assert not torch.equal(train.images, augmented_digits(views=2, seed=4).images)


def test_no_change_is_the_identity_and_a_quarter_turn_is_one():
    images = torch.rand(3, 2, 8, 8)
    assert torch.allclose(random_affine(images, 0, 0, 0), images, atol=1e-6)
    generator = torch.Generator().manual_seed(0)
    turned = random_affine(images, 90, 0, 0, generator=generator)
    assert not torch.allclose(turned[0], turned[1], atol=0.1) and turned.shape == images.shape
    again = random_affine(images, 90, 0, 0, generator=torch.Generator().manual_seed(0))
    assert torch.equal(turned, again)


def test_a_translation_moves_by_its_share_of_the_image():
    dot = torch.zeros(200, 1, 9, 9)
    dot[:, :, 4, 4] = 1
    moved = random_affine(dot, 0, 0, 2 / 9, generator=torch.Generator().manual_seed(0)).squeeze(1)
    rows = (moved.sum(2) * torch.arange(9)).sum(1) - 4
    assert rows.abs().max() <= 2 + 1e-4 and rows.max() > 1.8 and rows.min() < -1.8


def test_bad_use_is_refused():
    with pytest.raises(ValueError, match=r"shape \[B, C, H, W\], got \[2, 2\]"):
        random_affine(torch.rand(2, 2))
    with pytest.raises(ValueError, match="must not be negative and scale below 1"):
        random_affine(torch.rand(1, 1, 4, 4), scale=1)
    with pytest.raises(ValueError, match="part must be 'train' or 'test', got 'val'"):
        augmented_digits("val")
    with pytest.raises(ValueError, match="views must be at least 1, got 0"):
        augmented_digits(views=0)
