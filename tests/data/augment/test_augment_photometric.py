import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from scipy.stats import chisquare, kstest
from skimage.color import hsv2rgb, rgb2hsv
from skimage.filters import gaussian

from flambeau.data.augment import ColorJitter, GaussianBlur, Normalize, RandomGrayscale, Solarize, photometric


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def coloured(count=4, size=16):
    """Random colours with greys, black, white and pure colours among them; whole 255ths, as Pillow has them."""
    images = torch.randint(0, 256, (count, 3, size, size), generator=seeded()).float() / 255
    images[:, :, 0] = images[:, :1, 0]
    images[:, :, 1, :3] = torch.eye(3)
    images[:, :, 1, 3:6] = 1 - torch.eye(3)
    images[:, :, 1, 6], images[:, :, 1, 7] = 0, 1
    return images


def pillow(image):
    return Image.fromarray((image.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8))


def rows_last(images):
    return images.permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize(
    ("adjust", "enhance"),
    [
        (photometric.adjust_brightness, ImageEnhance.Brightness),
        (photometric.adjust_contrast, ImageEnhance.Contrast),
        (photometric.adjust_saturation, ImageEnhance.Color),
    ],
)
def test_brightness_contrast_and_saturation_are_those_of_pillow(adjust, enhance):
    images, factors = coloured(), torch.tensor([0.0, 0.6, 1.0, 1.7])
    for image, factor, result in zip(images, factors.tolist(), adjust(images, factors), strict=True):
        expected = np.asarray(enhance(pillow(image)).enhance(factor), np.float32) / 255
        # Pillow rounds the luma, its mean and the result to whole 255ths
        np.testing.assert_allclose(result.permute(1, 2, 0).numpy(), expected, atol=2.6 / 255)


def test_hue_is_turned_in_the_colour_circle():
    images, shifts = coloured(), torch.tensor([-0.5, -0.1, 0.07, 0.3])
    hsv = rgb2hsv(rows_last(images))
    hsv[..., 0] = (hsv[..., 0] + shifts.view(-1, 1, 1).numpy()) % 1
    np.testing.assert_allclose(rows_last(photometric.adjust_hue(images, shifts)), hsv2rgb(hsv), atol=2e-6)


def test_a_whole_turn_and_factors_of_one_change_nothing():
    images, ones = coloured(), torch.ones(4)
    for adjust in (photometric.adjust_brightness, photometric.adjust_contrast, photometric.adjust_saturation):
        assert torch.equal(adjust(images, ones), images)
    torch.testing.assert_close(photometric.adjust_hue(images, ones), images, atol=2e-6, rtol=0)
    torch.testing.assert_close(photometric.adjust_hue(images, -ones), images, atol=2e-6, rtol=0)


def test_factors_are_uniform_in_the_documented_range():
    grey = torch.full((4000, 1, 1, 1), 0.25)
    factor = ColorJitter(brightness=0.4, p=1.0)(grey, seeded()).flatten().double() / 0.25
    assert kstest(factor, "uniform", (0.6, 0.8)).pvalue > 0.01
    strong = ColorJitter(brightness=2.0, p=1.0)(grey, seeded()).flatten().double() / 0.25  # never below 0
    assert kstest(strong, "uniform", (0.0, 3.0)).pvalue > 0.01
    red = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1).expand(4000, -1, -1, -1)
    turned = rgb2hsv(rows_last(ColorJitter(hue=0.1, p=1.0)(red, seeded())))[..., 0].ravel()
    assert kstest((turned + 0.5) % 1 - 0.5, "uniform", (-0.1, 0.2)).pvalue > 0.01


def test_each_image_has_its_own_order_and_all_orders_are_as_likely(monkeypatch):
    for digit, name in enumerate(("brightness", "contrast", "saturation", "hue"), start=1):
        monkeypatch.setattr(photometric, f"adjust_{name}", lambda x, factor, digit=digit: 10 * x + digit)
    written = ColorJitter(1, 1, 1, 0.5)(torch.zeros(6000, 3, 1, 1), seeded())[:, 0, 0, 0].long()
    orders, counts = written[written > 0].unique(return_counts=True)
    assert all(sorted(str(order)) == list("1234") for order in orders.tolist())
    assert len(orders) == 24 and chisquare(counts.numpy()).pvalue > 0.01
    assert abs(int((written == 0).sum()) - 1200) < 4 * (6000 * 0.2 * 0.8) ** 0.5


def test_jitter_leaves_alone_what_has_no_strength():
    images = coloured()
    assert torch.equal(ColorJitter(p=1.0)(images, seeded()), images)
    hue = rgb2hsv(rows_last(images))[..., 0]
    changed = rgb2hsv(rows_last(ColorJitter(brightness=0.5, p=1.0)(images * 0.5, seeded())))[..., 0]
    np.testing.assert_allclose(changed, hue, atol=1e-4)  # brightness alone does not turn the hue


def test_other_channels_have_brightness_and_contrast():
    images = torch.rand(4, 5, 6, 6)
    factor = torch.tensor([0.5, 0.5, 2.0, 1.0])
    mean = images.mean((1, 2, 3), keepdim=True)
    expected = (factor.view(-1, 1, 1, 1) * images + (1 - factor.view(-1, 1, 1, 1)) * mean).clamp(0, 1)
    torch.testing.assert_close(photometric.adjust_contrast(images, factor), expected)
    for channels in (1, 5):
        assert ColorJitter(0.4, 0.4)(torch.rand(2, channels, 4, 4)).shape == (2, channels, 4, 4)


def test_grey_is_pillows_luma_and_falls_on_its_share():
    images = coloured()
    grey = RandomGrayscale(1.0)(images)
    assert torch.equal(grey[:, 0], grey[:, 1]) and torch.equal(grey[:, 0], grey[:, 2])
    expected = np.stack([np.asarray(pillow(image).convert("L"), np.float32) / 255 for image in images])
    np.testing.assert_allclose(grey[:, 0].numpy(), expected, atol=1.1 / 255)
    assert torch.equal(RandomGrayscale(0.0)(images), images)
    pure = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1).repeat(4000, 1, 1, 1)
    changed = (RandomGrayscale(0.2)(pure, seeded())[:, 0, 0, 0] < 1).sum()
    assert abs(int(changed) - 800) < 4 * (4000 * 0.2 * 0.8) ** 0.5


@pytest.mark.parametrize(("shape", "sigma"), [((24, 31), 2.0), ((24, 31), 0.7), ((5, 3), 2.0), ((1, 9), 1.5)])
def test_blur_is_that_of_skimage(shape, sigma):
    images = torch.rand(3, 2, *shape, dtype=torch.float64)
    blurred = GaussianBlur(1.0, (sigma, sigma))(images)
    for image, result in zip(images.flatten(0, 1), blurred.flatten(0, 1), strict=True):
        expected = gaussian(image.numpy(), sigma, mode="mirror", truncate=4.0)
        np.testing.assert_allclose(result.numpy(), expected, atol=1e-6)


def test_each_image_has_a_width_of_its_own():
    point = torch.zeros(3000, 1, 1, 41)
    point[..., 20] = 1
    blurred = GaussianBlur(1.0, (0.8, 2.0))(point, seeded()).double()
    offsets = torch.arange(-20, 21, dtype=torch.float64)
    width = (blurred * offsets.square()).sum((1, 2, 3)).sqrt()  # standard deviation of what a point becomes
    assert kstest(width, "uniform", (0.8, 1.2)).pvalue > 1e-3
    torch.testing.assert_close(blurred.sum((1, 2, 3)), torch.ones(3000, dtype=torch.float64), atol=1e-6, rtol=0)
    sharp = (GaussianBlur(0.1, (0.5, 2.0))(point, seeded())[..., 20] == 1).sum()
    assert abs(int(sharp) - 2700) < 4 * (3000 * 0.1 * 0.9) ** 0.5


def test_solarisation_is_that_of_pillow():
    images = coloured()
    expected = np.stack([np.asarray(ImageOps.solarize(pillow(image), 128), np.float32) for image in images]) / 255
    np.testing.assert_allclose(rows_last(Solarize(1.0, 128 / 255)(images)), expected, atol=1e-6)
    assert torch.equal(Solarize(0.0)(images), images)
    changed = (Solarize(0.3)(torch.ones(3000, 1, 1, 1), seeded()) == 0).sum()
    assert abs(int(changed) - 900) < 4 * (3000 * 0.3 * 0.7) ** 0.5


def test_normalize():
    images = torch.rand(2, 3, 4, 4)
    mean, std = images.mean((0, 2, 3)).tolist(), images.std((0, 2, 3)).tolist()
    scaled = Normalize(mean, std)(images)
    torch.testing.assert_close(scaled.mean((0, 2, 3)), torch.zeros(3), atol=1e-6, rtol=0)
    torch.testing.assert_close(scaled.std((0, 2, 3)), torch.ones(3))
    torch.testing.assert_close(Normalize(0.5, 0.25)(images), 4 * images - 2)


@pytest.mark.parametrize("part", [ColorJitter(0.4, 0.4, 0.2, 0.1), RandomGrayscale(0.5), GaussianBlur(), Solarize(0.5)])
def test_the_generator_decides_and_the_input_is_kept(part):
    images = coloured(8)
    before = images.clone()
    assert torch.equal(part(images, seeded(1)), part(images, seeded(1)))
    assert not torch.equal(part(images, seeded(1)), part(images, seeded(2)))
    assert torch.equal(images, before)
    assert part(images).min() >= 0 and part(images).max() <= 1 + 1e-6


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ColorJitter(brightness=-0.1), "brightness must not be negative"),
        (lambda: ColorJitter(hue=0.6), "hue must not exceed 0.5"),
        (lambda: ColorJitter(hue=0.1)(torch.rand(2, 1, 4, 4)), "saturation and hue need 3 channels, got 1"),
        (lambda: ColorJitter(saturation=0.1)(torch.rand(2, 4, 4, 4)), "saturation and hue need 3 channels, got 4"),
        (lambda: RandomGrayscale()(torch.rand(2, 1, 4, 4)), "3 channels, got 1"),
        (lambda: GaussianBlur(sigma=(0.0, 2.0)), "sigma must be two positive"),
        (lambda: GaussianBlur(p=-1), "p must lie in"),
        (lambda: Solarize(threshold=2.0), "threshold must lie in"),
        (lambda: Normalize(0.5, 0.0), "std must be positive"),
        (lambda: Normalize((0.5, 0.5), 1.0)(torch.rand(1, 3, 4, 4)), "mean has 2 numbers, the images have 3 channels"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
