import pytest
import torch

from flambeau.data import PHOTOS, Batches, ImageSet, digits, faces, photo, photos
from flambeau.data.images.image_set import TEXTURES


def test_digits_and_faces_are_what_they_say():
    data = digits()
    assert data.images.shape == (1797, 1, 8, 8) and data.images.dtype == torch.float32
    assert data.images.min() == 0 and data.images.max() == 1
    assert data.labels.bincount().tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert digits(16).images.shape == (1797, 1, 16, 16)
    data = faces()
    assert data.images.shape == (200, 1, 25, 25) and data.classes[data.labels[0]] == "face"


def test_splits_are_disjoint_stratified_and_reproducible():
    data = digits()
    numbered = ImageSet(data.images, data.labels, data.classes)
    parts = numbered.split((0.7, 0.2, 0.1), seed=4)
    again = numbered.split((0.7, 0.2, 0.1), seed=4)
    assert all(torch.equal(one.images, other.images) for one, other in zip(parts, again))
    assert sum(len(part) for part in parts) == 1797
    for part, fraction in zip(parts, (0.7, 0.2, 0.1)):
        share = part.labels.bincount() / data.labels.bincount()
        assert (share - fraction).abs().max() < 0.02
    rows = torch.cat([part.images for part in parts]).flatten(1)
    assert rows.unique(dim=0).shape == data.images.flatten(1).unique(dim=0).shape
    assert not torch.equal(numbered.split((0.7,), seed=5)[0].images, parts[0].images)


def test_the_split_is_the_same_everywhere():
    """The exact images of a seed are part of every reported figure."""
    train, test = digits().split((0.8, 0.2), seed=0)
    assert (len(train), len(test)) == (1438, 359)
    assert train.labels[:12].tolist() == [9, 8, 0, 4, 4, 7, 8, 6, 7, 0, 5, 6]


def test_groups_stay_whole():
    generator = torch.Generator().manual_seed(0)
    groups = torch.randint(0, 40, (400,), generator=generator)
    data = ImageSet(torch.rand(400, 1, 2, 2, generator=generator), groups % 4, groups=groups)
    train, test = data.split((0.75, 0.25))
    assert not set(train.groups.tolist()) & set(test.groups.tolist())
    assert 0.6 < len(train) / 400 < 0.9 and test.labels.unique().numel() == 4


def test_photo_crops_of_two_parts_share_no_pixel():
    """Crops are found again in their photograph, and the areas that the two parts cover do not meet."""
    data = photos(crop=24, count=180, seed=1)
    train, test = data.split((0.65, 0.35), seed=0)
    assert len(PHOTOS) == 18 and len(train) + len(test) == 180
    assert train.labels.unique().numel() == test.labels.unique().numel() == 18
    label = PHOTOS.index("coins")
    whole = photo("coins", gray=True)
    windows = whole[0].unfold(0, 24, 1).unfold(1, 24, 1)[:, :, ::6, ::6]  # 16 pixels tell a crop's place
    covered = []
    for part in (train, test):
        mask = torch.zeros_like(whole[0], dtype=torch.bool)
        for crop in part.images[part.labels == label]:
            places = (windows == crop[0, ::6, ::6]).all(-1).all(-1).nonzero()
            assert len(places) == 1
            y, x = places[0].tolist()
            mask[y : y + 24, x : x + 24] = True
        covered.append(mask)
    assert covered[0].any() and covered[1].any() and not (covered[0] & covered[1]).any()


def test_photos_follow_the_seed():
    first, second, other = photos(16, 36, seed=2), photos(16, 36, seed=2), photos(16, 36, seed=3)
    assert torch.equal(first.images, second.images) and not torch.equal(first.images, other.images)
    colour = photos(16, 20, gray=False)
    assert colour.images.shape == (20, 3, 16, 16) and colour.labels.bincount().tolist() == [2, 2] + [1] * 16


def test_an_image_set_is_a_map_style_dataset():
    data = digits()
    image, label = data[3]
    assert torch.equal(image, data.images[3]) and label == data.labels[3]
    images, labels = Batches(data, 8, shuffle=False).batch(0, torch.Generator())
    assert torch.equal(images, data.images[:8]) and torch.equal(labels, data.labels[:8])
    assert len(data[data.labels == 3]) == 183 and data[:5].classes == data.classes
    assert torch.equal(ImageSet(data.images)[0], data.images[0])


def test_crops_of_chosen_photographs():
    data = photos(24, 30, names=TEXTURES[:3])
    assert data.classes == ["brick", "grass", "gravel"] and data.labels.bincount().tolist() == [10, 10, 10]
    assert data.images.shape == (30, 1, 24, 24)


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ((torch.zeros(2, 1, 4, 4).byte(),), TypeError, "images must be float32"),
        ((torch.zeros(2, 4, 4),), ValueError, r"shape \[N, C, H, W\], got \[2, 4, 4\]"),
        ((torch.full((2, 1, 4, 4), 255.0),), ValueError, r"must lie in \[0, 1\], got \[255, 255\]"),
        ((torch.full((2, 1, 4, 4), torch.nan),), ValueError, r"must lie in \[0, 1\]"),
        ((torch.zeros(2, 1, 4, 4), torch.zeros(3).long()), ValueError, r"labels must have shape \[2\], got \[3\]"),
        ((torch.zeros(2, 1, 4, 4), torch.zeros(2)), TypeError, "labels must be int64"),
        ((torch.zeros(2, 1, 4, 4), torch.tensor([0, 2]), ["a", "b"]), ValueError, r"labels must lie in \[0, 2\)"),
    ],
)
def test_bad_images_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        ImageSet(*arguments)


def test_bad_arguments_are_named():
    data = digits()
    for fractions in ((0.8, 0.3), (1.2,), (0.0, 0.5), ()):
        with pytest.raises(ValueError, match="fractions must be positive and sum to at most 1"):
            data.split(fractions)
    with pytest.raises(ValueError, match="the part of 0.01 would be empty"):
        data[:10].split((0.99, 0.01))
    with pytest.raises(ValueError, match=r"crop must lie in \[1, 172\] pixels, got 200"):
        photos(200)
    with pytest.raises(ValueError, match="photo must be one of astronaut"):
        photo("mona_lisa")
    with pytest.raises(ValueError, match="photo must be one of astronaut"):
        photos(names=("brick", "mona_lisa"))
    with pytest.raises(ValueError, match="size must be at least 1 pixel"):
        data.resize(0)
