import pytest
import torch

from flambeau.data import Batches
from flambeau.data.augment import ColorJitter, Compose, RandomFlip, RandomResizedCrop, Views
from flambeau.symbolic import build, parse_value


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_steps_run_in_order_on_one_stream():
    images = torch.rand(5, 3, 16, 16)
    crop, jitter = RandomResizedCrop(8), ColorJitter(0.4, 0.4, 0.2, 0.1)
    generator = seeded(2)
    assert torch.equal(Compose(crop, jitter)(images, seeded(2)), jitter(crop(images, generator), generator))


def test_multi_crop_has_views_of_two_sizes_that_all_differ():
    images = torch.rand(4, 3, 32, 32)
    large, small = RandomResizedCrop(24), Compose(RandomResizedCrop(12, scale=(0.05, 0.2)), RandomFlip())
    views = Views(large, large, *[small] * 4)(images, seeded())
    assert [view.shape[2] for view in views] == [24, 24, 12, 12, 12, 12]
    for position, view in enumerate(views):
        for other in views[:position]:
            assert view.shape != other.shape or not torch.equal(view, other)


def test_as_a_transform_of_batches_a_step_always_gives_the_same_views():
    data = Batches(torch.rand(20, 3, 8, 8), 4, transform=Views(RandomResizedCrop(8), RandomFlip()))
    first, other = data.batch(7, seeded(1)), data.batch(8, seeded(1))
    again = data.batch(7, seeded(1))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])


def test_pipelines_are_written_on_the_command_line():
    written = build(parse_value("Views(Compose(RandomResizedCrop(24), ColorJitter(hue=0.1)), RandomFlip(p=0.1))"))
    assert repr(written) == repr(Views(Compose(RandomResizedCrop(24), ColorJitter(hue=0.1)), RandomFlip(p=0.1)))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Views(), ValueError, "at least one"),
        (lambda: Views(RandomFlip(), None), TypeError, r"pipelines\[1\] must be callable, got NoneType"),
        (lambda: Compose("flip"), TypeError, r"steps\[0\] must be callable, got str"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
