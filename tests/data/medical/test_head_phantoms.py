import pytest
import torch

from flambeau.data.medical.head_phantoms import CLASSES, head_phantoms


def test_slices_of_a_head_are_one_group_of_one_class():
    phantoms = head_phantoms(41, slices=3, seed=2)
    assert phantoms.images.shape == (41, 1, 48, 48) and phantoms.classes == CLASSES
    assert phantoms.groups.tolist() == [i // 3 for i in range(41)]
    assert phantoms.labels.tolist() == [(i // 3) % 4 for i in range(41)]


def test_the_seed_decides():
    a, b, c = head_phantoms(8, seed=1), head_phantoms(8, seed=1), head_phantoms(8, seed=2)
    assert torch.equal(a.images, b.images) and not torch.equal(a.images, c.images)


def test_the_lesion_is_all_that_tells_the_classes_apart():
    with_lesion, without = head_phantoms(80, noise=0.0, slices=1), head_phantoms(80, noise=0.0, contrast=0.0, slices=1)
    change = with_lesion.images - without.images
    for number, name in enumerate(CLASSES):
        own = change[with_lesion.labels == number]
        if name == "none":
            assert not own.any()
        elif name == "hypodense":
            assert (own <= 0).all() and (own.amin((1, 2, 3)) < -0.15).all()
        else:
            assert (own >= 0).all() and (own.amax((1, 2, 3)) > 0.1).all()
    # a ring has tissue in its middle: less of its bounding box is changed than of a blob's
    area = (change.abs() > 0.1).sum((1, 2, 3)).float()
    assert area[with_lesion.labels == 2].mean() < area[with_lesion.labels == 1].mean()


def test_neighbouring_slices_are_alike():
    images = head_phantoms(80, noise=0.0).images[:, 0]
    neighbours = (images[0::2] - images[1::2]).abs().mean()
    others = (images[0:-2:2] - images[2::2]).abs().mean()
    assert neighbours < 0.5 * others


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (dict(count=0), "count, size and slices"),
        (dict(radius=(0.2, 0.1)), "radius must be"),
        (dict(contrast=0.9), "contrast must lie"),
    ],
)
def test_bad_values_are_named(bad, message):
    with pytest.raises(ValueError, match=message):
        head_phantoms(**bad)
