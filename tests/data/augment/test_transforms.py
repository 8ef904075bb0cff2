import numpy as np
import pytest
import torch

from flambeau.data import elastic_deform, random_shift
from flambeau.data.augment.deform import _smooth


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_no_strength_is_the_identity_and_a_little_moves_a_little():
    images = torch.rand(3, 2, 9, 11, generator=seeded(0))
    assert torch.equal(elastic_deform(images, alpha=0.0), images)
    torch.testing.assert_close(elastic_deform(images, alpha=1e-4, generator=seeded(1)), images, atol=1e-4, rtol=0)
    assert (elastic_deform(images, alpha=20.0, generator=seeded(1)) - images).abs().mean() > 0.05


def test_the_same_seed_gives_the_same_field_and_each_image_its_own():
    images = torch.rand(1, 1, 12, 12, generator=seeded(0)).expand(4, 3, 12, 12)
    first, second = (elastic_deform(images, generator=seeded(1)) for _ in range(2))
    assert torch.equal(first, second) and first.shape == images.shape
    assert not torch.equal(first[0], first[1]), "images of a batch are deformed on their own"
    assert torch.equal(first[:, 0], first[:, 1]), "channels are deformed together"
    assert not torch.equal(first, elastic_deform(images, generator=seeded(2)))


def test_a_ramp_shows_the_field_that_the_paper_defines():
    """On a linear ramp bilinear interpolation is exact, so the deformed ramp minus the ramp is the field itself."""
    ndimage = pytest.importorskip("scipy.ndimage")
    height, width, sigma, alpha = 40, 30, 3.0, 8.0
    columns = torch.arange(width, dtype=torch.float64).expand(1, 1, height, width)
    noise = torch.rand(2, 1, height, width, generator=seeded(5)).mul_(2).sub_(1)
    field = alpha * ndimage.gaussian_filter(noise[1, 0].double().numpy(), sigma, mode="constant")
    moved = elastic_deform(columns, sigma, alpha, seeded(5))[0, 0] - columns[0, 0]
    inside = np.s_[5:-5, 5:-5]
    np.testing.assert_allclose(moved.numpy()[inside], field[inside], atol=1e-5)


def test_smoothing_is_scipys_gaussian():
    ndimage = pytest.importorskip("scipy.ndimage")
    noise = torch.rand(1, 1, 20, 25, generator=seeded(0), dtype=torch.float64)
    expected = ndimage.gaussian_filter(noise[0, 0].numpy(), 4.0, mode="constant")
    np.testing.assert_allclose(_smooth(noise, 4.0)[0, 0].numpy(), expected, atol=1e-12)


def test_shifts_are_whole_and_equally_likely():
    images = torch.zeros(4000, 2, 7, 7)
    images[:, :, 3, 3] = 1
    moved = random_shift(images, 1, seeded(0))
    assert moved.sum() == 8000 and torch.equal(moved[:, 0], moved[:, 1])
    places = moved[:, 0, 2:5, 2:5].sum(0).flatten() / 4000
    assert ((places - 1 / 9).abs() < 0.02).all()


def test_shift_fills_with_zeros_and_respects_its_probability():
    images = torch.ones(2000, 1, 4, 4)
    sums = random_shift(images, 1, seeded(0), probability=0.3).flatten(1).sum(1)
    assert set(sums.tolist()) == {9.0, 12.0, 16.0}
    assert abs((sums == 16).float().mean() - (0.7 + 0.3 / 9)) < 0.03
    assert torch.equal(random_shift(images, 0, seeded(0)), images)
    assert torch.equal(random_shift(images, 2, seeded(1)), random_shift(images, 2, seeded(1)))


def test_bad_input_is_named():
    images = torch.zeros(2, 1, 4, 4)
    for call in (elastic_deform, random_shift):
        with pytest.raises(ValueError, match=r"shape \[B, C, H, W\], got \[1, 4, 4\]"):
            call(images[0])
    with pytest.raises(ValueError, match="sigma must be positive, got 0"):
        elastic_deform(images, sigma=0.0)
    with pytest.raises(ValueError, match="pixels must not be negative"):
        random_shift(images, -1)
    with pytest.raises(ValueError, match=r"probability must lie in \[0, 1\], got 2"):
        random_shift(images, 1, probability=2)
