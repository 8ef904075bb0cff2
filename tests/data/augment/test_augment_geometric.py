import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import kstest
from torch.nn import functional as F

from flambeau.data.augment import RandomFlip, RandomResizedCrop, rotate_quarter
from flambeau.data.augment.geometric import resize_by_products, resize_matrix


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("size", [12, 40, (9, 31)])
def test_a_crop_is_its_box_resized_as_torch_and_pillow_do(size):
    images = torch.rand(16, 3, 30, 22, generator=seeded())
    crop = RandomResizedCrop(size)
    cut = crop(images, seeded(1))
    target = (size, size) if isinstance(size, int) else size
    boxes = crop.boxes(16, (30, 22), seeded(1))
    by_products = resize_by_products(images, boxes, target)  # as on other devices
    for image, box, result, other in zip(images, boxes.tolist(), cut, by_products, strict=True):
        top, left, height, width = box
        piece = image[None, :, top : top + height, left : left + width]
        expected = F.interpolate(piece, target, mode="bilinear", antialias=True, align_corners=False)[0]
        torch.testing.assert_close(result, expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(other, expected, atol=1e-5, rtol=0)
        pillow = Image.fromarray(piece[0, 1].numpy()).resize(target[::-1], Image.Resampling.BILINEAR)
        np.testing.assert_allclose(result[1].numpy(), np.asarray(pillow), atol=1e-5)


def test_the_whole_image_at_its_own_size_is_the_image():
    images = torch.rand(3, 2, 17, 17)
    assert torch.equal(RandomResizedCrop(17, scale=(1, 1), ratio=(1, 1))(images), images)


def test_boxes_have_uniform_areas_ratios_and_places():
    crop = RandomResizedCrop(8, scale=(0.1, 0.5), ratio=(0.5, 2.0))  # every such box fits a square
    top, left, height, width = crop.boxes(4000, (2000, 2000), seeded()).double().unbind(1)
    assert kstest(height * width / 2000**2, "uniform", (0.1, 0.4)).pvalue > 0.01
    log_ratio = (width / height).log()
    assert kstest(log_ratio, "uniform", (np.log(0.5), 2 * np.log(2))).pvalue > 0.01
    assert kstest(top / (2001 - height), "uniform").pvalue > 0.01
    assert kstest(left / (2001 - width), "uniform").pvalue > 0.01


def test_boxes_lie_inside_whatever_the_image():
    for size in [(1, 1), (7, 40), (40, 7), (3, 3)]:
        top, left, height, width = RandomResizedCrop(4).boxes(2000, size, seeded()).unbind(1)
        assert top.min() >= 0 and left.min() >= 0 and height.min() >= 1 and width.min() >= 1
        assert int((top + height).max()) <= size[0] and int((left + width).max()) <= size[1]


@pytest.mark.parametrize(
    ("ratio", "size", "expected"),
    [((4, 8), (16, 16), [6, 0, 4, 16]), ((0.1, 0.25), (16, 16), [0, 6, 16, 4]), ((0.9, 1.1), (1, 1), [0, 0, 1, 1])],
)
def test_where_no_box_fits_the_largest_in_the_middle_is_taken(ratio, size, expected):
    boxes = RandomResizedCrop(4, scale=(1, 1), ratio=ratio).boxes(50, size, seeded())
    assert boxes.tolist() == [expected] * 50


def test_weights_of_resizing_sum_to_one_and_stay_in_the_piece():
    matrix = resize_matrix(torch.tensor([0, 5]), torch.tensor([20, 3]), 20, 7)
    torch.testing.assert_close(matrix.sum(2), torch.ones(2, 7))
    assert matrix[1, :, :5].eq(0).all() and matrix[1, :, 8:].eq(0).all()


def test_the_generator_decides_and_each_image_draws_its_own():
    images = torch.rand(1, 3, 32, 32).expand(8, -1, -1, -1)
    crop = RandomResizedCrop(16)
    assert torch.equal(crop(images, seeded(3)), crop(images, seeded(3)))
    assert not torch.equal(crop(images, seeded(3)), crop(images, seeded(4)))
    assert len({tuple(box) for box in crop.boxes(8, (32, 32), seeded(3)).tolist()}) == 8


def test_crops_pass_gradients_and_other_dtypes():
    images = torch.rand(2, 1, 8, 8, dtype=torch.float64, requires_grad=True)
    RandomResizedCrop(4)(images, seeded()).sum().backward()
    assert images.grad is not None and images.grad.abs().sum() > 0
    assert RandomResizedCrop(4)(torch.rand(2, 1, 8, 8).bfloat16()).dtype == torch.bfloat16


def test_flip():
    images = torch.rand(4000, 1, 1, 2)
    assert torch.equal(RandomFlip(1.0)(images), images.flip(3))
    assert torch.equal(RandomFlip(0.0)(images), images)
    flipped = (RandomFlip(0.3)(images, seeded()) != images).all((1, 2, 3)).sum()
    assert abs(int(flipped) - 1200) < 4 * (4000 * 0.3 * 0.7) ** 0.5


def test_quarter_turns_are_those_of_torch():
    images, k = torch.rand(9, 2, 5, 5), torch.tensor([0, 1, 2, 3, 4, 5, -1, -2, 7])
    expected = torch.stack([image.rot90(int(turns), (1, 2)) for image, turns in zip(images, k, strict=True)])
    turned = rotate_quarter(images, k)
    assert torch.equal(turned, expected)
    assert torch.equal(rotate_quarter(turned, -k), images)
    four = images
    for _ in range(4):
        four = rotate_quarter(four, torch.ones(9, dtype=torch.int64))
    assert torch.equal(four, images)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: RandomResizedCrop(0), ValueError, "size must be at least 1"),
        (lambda: RandomResizedCrop(8, scale=(0.5, 0.2)), ValueError, "scale must be two positive numbers in order"),
        (lambda: RandomResizedCrop(8, scale=(0.5, 1.2)), ValueError, "scale must not exceed 1"),
        (lambda: RandomResizedCrop(8, ratio=(0.0, 1.0)), ValueError, "ratio must be two positive"),
        (lambda: RandomFlip(1.5), ValueError, r"p must lie in \[0, 1\], got 1.5"),
        (lambda: RandomFlip()(torch.rand(3, 8, 8)), ValueError, r"images must have shape \[B, C, H, W\]"),
        (lambda: RandomFlip()(torch.zeros(1, 3, 8, 8, dtype=torch.uint8)), TypeError, "float tensor in .*uint8"),
        (lambda: rotate_quarter(torch.rand(2, 1, 4, 6), torch.zeros(2).long()), ValueError, "must be square"),
        (lambda: rotate_quarter(torch.rand(2, 1, 4, 4), torch.zeros(3).long()), ValueError, r"k must have shape \[2\]"),
        (lambda: rotate_quarter(torch.rand(2, 1, 4, 4), torch.zeros(2)), TypeError, "k must be int64"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
