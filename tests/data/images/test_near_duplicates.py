import math

import pytest
import torch

from flambeau.data import ImageSet
from flambeau.data.images.near_duplicates import difference_hash, distinct, without_near_duplicates
from flambeau.data.medical.head_phantoms import head_phantoms


def test_a_hash_does_not_see_brightness_contrast_and_size():
    images = head_phantoms(20, noise=0.0, slices=1).images
    bits = difference_hash(images)
    assert bits.shape == (20, 128) and bits.dtype == torch.bool
    assert (difference_hash(0.5 * images + 0.2) == bits).float().mean() > 0.95
    larger = torch.nn.functional.interpolate(images, scale_factor=2.0)
    assert (difference_hash(larger) == bits).float().mean() > 0.95
    assert (difference_hash(images.roll(12, 3)) == bits).float().mean() < 0.8


def test_a_scan_is_thinned_and_not_collapsed():
    """Each vector is 5 degrees from the next: neighbours are alike, the ends of the chain are not."""
    angle = torch.deg2rad(5.0 * torch.arange(37))
    circle = torch.stack([angle.cos(), angle.sin()], 1)
    kept = distinct(circle, threshold=math.cos(math.radians(14)))
    assert kept.tolist() == list(range(0, 37, 3))


def test_only_within_groups():
    same = torch.ones(6, 4)
    groups = torch.tensor([0, 1, 0, 1, 2, 2])
    assert distinct(same, threshold=0.9).tolist() == [0]
    assert distinct(same, threshold=0.9, groups=groups).tolist() == [0, 1, 4]


def test_planted_copies_are_found_and_others_kept():
    phantoms = head_phantoms(24, slices=1, seed=3)
    noisy = (phantoms.images + 0.01 * torch.randn(phantoms.images.shape)).clamp(0, 1)
    both = ImageSet(torch.cat([phantoms.images, noisy]), groups=torch.cat([phantoms.groups, phantoms.groups]))
    found = without_near_duplicates(both, threshold=0.9)
    assert len(found) == 24 and torch.equal(found.images, phantoms.images)


def test_bad_values_are_named():
    with pytest.raises(ValueError, match="threshold must lie in"):
        distinct(torch.ones(2, 2), threshold=0.0)
    with pytest.raises(ValueError, match="groups must have shape"):
        distinct(torch.ones(2, 2), threshold=0.5, groups=torch.zeros(3, dtype=torch.long))
    with pytest.raises(ValueError, match=r"\[N, C, H, W\]"):
        difference_hash(torch.ones(2, 2))
