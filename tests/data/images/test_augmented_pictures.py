"""The pictures of ImageNet's layout, and the changes of CIFAR's."""

import numpy
import pytest
import torch
from PIL import Image

from flambeau.data.images.augmented_pictures import MEAN, STD, AugmentedPictures, PadAndCrop


def folder_of(path, height=40, width=60):
    for label, name in enumerate(("n01", "n02")):
        (path / name).mkdir(parents=True)
        for number in range(2):
            ramp = numpy.tile(numpy.linspace(0, 255, width, dtype=numpy.uint8)[:, None], (height, 1, 3))
            Image.fromarray(ramp if label == 0 else 255 - ramp).save(path / name / f"{number}.png")
    return path


def test_the_centre_is_cut_out_and_normalised(tmp_path):
    data = AugmentedPictures(folder_of(tmp_path), train=False, size=16, resize=20)
    image, label = data[2]
    assert len(data) == 4 and data.classes == ["n01", "n02"] and label == 1 and image.shape == (3, 16, 16)
    plain = image * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)
    assert torch.equal(data[2][0], image)
    assert plain.mean().item() == pytest.approx(0.5, abs=0.02)  # the centre of a ramp
    assert plain[0, 0, 0] - plain[0, 0, -1] == pytest.approx(15 * 2 / 59, abs=0.03)  # resized by two, 15 steps


def test_parts_are_random_and_follow_the_global_generator(tmp_path):
    data = AugmentedPictures(folder_of(tmp_path), size=16, scale=(0.08, 0.5))
    torch.manual_seed(0)
    first, other = data[0][0], data[0][0]
    torch.manual_seed(0)
    assert torch.equal(data[0][0], first) and not torch.equal(first, other)
    slopes = torch.stack([data[0][0][0, 8] for _ in range(40)])
    rising = (slopes[:, -1] > slopes[:, 0]).sum()
    assert 10 < rising < 30  # flipped half of the times


def test_a_panorama_falls_back_to_its_middle(tmp_path):
    data = AugmentedPictures(folder_of(tmp_path, height=4, width=300), size=8, scale=(1.0, 1.0))
    assert data[0][0].shape == (3, 8, 8)


def test_pad_and_crop_moves_and_flips():
    images = torch.rand(64, 1, 8, 8)
    generator = torch.Generator().manual_seed(0)
    moved = PadAndCrop(2)(images, generator)
    assert moved.shape == images.shape and not torch.equal(moved, images)
    assert torch.equal(PadAndCrop(0, flip=False)(images, generator), images)
    flipped = PadAndCrop(0)(images, generator)
    mirrored = [torch.equal(a, b.flip(-1)) for a, b in zip(flipped, images)]
    assert 16 < sum(mirrored) < 48


def test_bad_use_is_refused(tmp_path):
    folder_of(tmp_path / "a")
    with pytest.raises(ValueError, match=r"size must lie in \[1, resize\], got size 300 and resize 256"):
        AugmentedPictures(tmp_path / "a", size=300)
    with pytest.raises(ValueError, match="scale must be"):
        AugmentedPictures(tmp_path / "a", scale=(0.0, 1.0))
    with pytest.raises(ValueError, match="expected a folder for each class"):
        AugmentedPictures(tmp_path / "a" / "n01")
    with pytest.raises(ValueError, match="padding must not be negative"):
        PadAndCrop(-1)
