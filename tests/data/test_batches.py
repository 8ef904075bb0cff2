import pytest
import torch
from torch.utils.data import Dataset

from flambeau.data import Batches, derive_seed


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noisy(batch, generator):
    return batch + torch.rand(batch.shape, generator=generator)


@pytest.mark.parametrize("transform", [None, noisy])
def test_a_batch_is_a_pure_function_of_step_and_seed(transform):
    data = torch.arange(23.0)
    first, second = (Batches(data, 5, transform=transform) for _ in range(2))
    forward = [first.batch(step, seeded(3)) for step in range(12)]
    used = seeded(3)
    torch.rand(100, generator=used)  # a generator's state does not matter, its seed does
    for step in reversed(range(12)):
        assert torch.equal(second.batch(step, used), forward[step])
    assert not torch.equal(first.batch(0, seeded(4)), forward[0])


def test_using_a_batch_leaves_the_generator_and_the_global_one_alone():
    generator = seeded(3)
    before, outside = generator.get_state(), torch.get_rng_state()
    Batches(torch.arange(9.0), 2, transform=noisy).batch(7, generator)
    assert torch.equal(generator.get_state(), before) and torch.equal(torch.get_rng_state(), outside)


@pytest.mark.parametrize("drop_last, lengths", [(True, [5] * 4), (False, [5] * 4 + [3])])
def test_each_epoch_is_its_own_permutation(drop_last, lengths):
    batches = Batches(torch.arange(23), 5, drop_last=drop_last)
    assert len(batches) == len(lengths)
    epochs = []
    for epoch in range(3):
        parts = [batches.batch(epoch * len(batches) + position, seeded(0)) for position in range(len(batches))]
        assert [len(part) for part in parts] == lengths
        epochs.append(torch.cat(parts))
        assert epochs[-1].unique().numel() == sum(lengths)
    assert not torch.equal(epochs[0], epochs[1]) and not torch.equal(epochs[1], epochs[2])


def test_structures_keep_their_rows_together():
    x = torch.arange(12)
    pair = Batches((x, x * 10), 4).batch(1, seeded(0))
    assert isinstance(pair, tuple) and torch.equal(pair[0] * 10, pair[1])
    named = Batches({"x": x, "y": -x}, 4).batch(1, seeded(0))
    assert torch.equal(named["x"], pair[0]) and torch.equal(named["y"], -pair[0])

    class Squares(Dataset):
        def __len__(self):
            return 12

        def __getitem__(self, index):
            return {"x": torch.tensor(index), "square": index**2}

    collated = Batches(Squares(), 4).batch(1, seeded(0))
    assert torch.equal(collated["x"], pair[0]) and torch.equal(collated["square"], pair[0] ** 2)


def test_all_gives_every_sample_once_in_order_and_untransformed():
    batches = Batches(torch.arange(23.0), 5, transform=noisy)
    for size in (None, 7, 100):
        assert torch.equal(torch.cat(list(batches.all(size))), torch.arange(23.0))
    unshuffled = Batches(torch.arange(6), 2, shuffle=False)
    assert torch.equal(torch.cat([unshuffled.batch(step, seeded(9)) for step in (3, 4, 5)]), torch.arange(6))


def test_seeds_do_not_collide_as_sums_do():
    assert derive_seed(0, "epoch", 1) != derive_seed(1, "epoch", 0)
    assert derive_seed(1, 23) != derive_seed(12, 3) and derive_seed(1) != derive_seed("1")
    assert derive_seed(0, "epoch", 0) == 5889931503207772184, "figures that were reported depend on it"


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ((torch.arange(5), 0), ValueError, "batch_size must be at least 1, got 0"),
        ((torch.arange(5), 6), ValueError, "batch_size 6 exceeds the 5 samples"),
        (((torch.arange(5), torch.arange(4)), 2), ValueError, "equal first axes, got {'array 0': 5, 'array 1': 4}"),
        (((), 2), ValueError, "no arrays"),
        ((torch.empty(0, 3), 2), ValueError, "empty"),
        ((torch.tensor(1.0), 1), ValueError, "got a scalar"),
        ((({"x": [1, 2]}), 1), TypeError, "array 'x' must be a tensor, got list"),
        (("text", 1), TypeError, "expected a tensor, a tuple or dict of tensors"),
    ],
)
def test_bad_input_is_named(arguments, error, message):
    with pytest.raises(error, match=message):
        Batches(*arguments)
