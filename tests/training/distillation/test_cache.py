"""The teacher cache: the same values in any order, a key that sees every change, shards that can be lost singly."""

import os

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from flambeau.data import Batches
from flambeau.data.seeding import derive_generator
from flambeau.training.distillation.cache import TeacherCache, cache_key, data_digest, teacher_digest
from flambeau.training.distillation.per_sample import PerSample

KEY = "0123456789abcdef" * 4


def network(channels, seed):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU(), nn.AdaptiveAvgPool2d(2),
        nn.Flatten(), nn.Linear(4 * channels, 10),
    )  # fmt: skip


def teacher_of(seed=0):
    return network(16, seed).eval().requires_grad_(False)


def images_of(samples=40):
    generator = torch.Generator().manual_seed(3)
    return torch.rand(samples, 1, 8, 8, generator=generator), torch.randint(10, (samples,), generator=generator)


def shifted(images, generator):
    return images.roll(int(torch.randint(8, (), generator=generator)), -1) + torch.rand(1, generator=generator)


def losses(folder, transform=None, epochs=2, cached=True, seed=0):
    """The losses of a student that learns from the teacher, batch by batch, with shuffling."""
    images, labels = images_of()
    data = Batches((images, labels, torch.arange(40)), 8, transform=transform)
    teacher, student = teacher_of(), network(4, 1)
    cache = TeacherCache(folder, cache_key(teacher, data, "logits")) if cached else None
    optimizer = torch.optim.SGD(student.parameters(), 0.1)
    seen = []
    for step in range(epochs * len(data)):
        x, y, ids = data.batch(step, torch.Generator().manual_seed(seed))
        logits = teacher(x) if cache is None else cache.fetch(ids, lambda x=x: teacher(x))
        loss = F.cross_entropy(student(x), y) + F.mse_loss(student(x), logits)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen.append(loss.item())
    return seen, cache


@pytest.mark.parametrize("transform", [None, PerSample(shifted, 5)], ids=["plain", "augment_seed"])
def test_losses_are_the_same_with_and_without_the_cache(tmp_path, transform):
    with_cache, cache = losses(tmp_path, transform)
    assert with_cache == losses(tmp_path, transform, cached=False)[0]
    assert (cache.misses, cache.hits) == (40, 40)  # every sample once, then never again
    again, cache = losses(tmp_path, transform, seed=1)  # another order, from the file
    assert again == losses(tmp_path, transform, cached=False, seed=1)[0]
    assert (cache.misses, cache.hits) == (0, 80)


def test_outputs_belong_to_their_samples_in_any_order(tmp_path):
    """The classic error: outputs in the order in which they were stored, for batches in another order."""
    with TeacherCache(tmp_path, KEY, shard_bytes=1) as cache:
        for epoch in range(3):
            for ids in torch.randperm(30, generator=derive_generator(0, epoch)).split(7):
                assert torch.equal(cache.fetch(ids, lambda ids=ids: ids * 10), ids * 10)
        assert len(cache) == 30 and len(list(cache.folder.iterdir())) == 5
        assert torch.equal(cache.fetch(torch.tensor([4, 4, 29, 4]), None), torch.tensor([40, 40, 290, 40]))


def test_structure_dtypes_and_devices_are_kept(tmp_path):
    ids = torch.tensor([5, 2, 9])
    outputs = {
        "layer3": {"output": torch.randn(3, 2, 2), "input": (torch.randn(3).bfloat16(), [torch.arange(3)])},
        "/": torch.tensor([True, False, True]),
    }
    with TeacherCache(tmp_path, KEY) as cache:
        cache.fetch(ids, lambda: outputs)
    read = TeacherCache(tmp_path, KEY).fetch(ids.flip(0), None)
    assert list(read) == ["layer3", "/"] and isinstance(read["layer3"]["input"], tuple)
    assert torch.equal(read["layer3"]["output"], outputs["layer3"]["output"].flip(0))
    assert torch.equal(read["layer3"]["input"][0], outputs["layer3"]["input"][0].flip(0))
    assert read["layer3"]["input"][1][0].tolist() == [2, 1, 0] and read["/"].dtype == torch.bool


def test_the_key_sees_every_change():
    images, labels = images_of()
    data = Batches((images, labels, torch.arange(40)), 8)
    teacher = teacher_of()
    keys = {cache_key(teacher, data), cache_key(teacher, data, "layer3")}
    assert cache_key(teacher_of(), Batches((images, labels, torch.arange(40)), 5)) in keys  # the batch size may change
    changed = teacher_of()
    changed[5].weight[0, 0] += 1e-6
    keys.add(cache_key(changed, data))
    statistics = teacher_of()
    statistics[1].running_mean[0] += 1e-6
    keys.add(cache_key(statistics, data))
    activation = teacher_of()
    activation[2] = nn.GELU().eval()
    keys.add(cache_key(activation, data))
    for seed in (0, 1):
        keys.add(cache_key(teacher, Batches((images, labels, torch.arange(40)), 8, transform=PerSample(shifted, seed))))
    darker = Batches(
        (images, labels, torch.arange(40)), 8, transform=lambda batch, generator: (batch[0] / 2, *batch[1:])
    )
    keys.add(cache_key(teacher, darker))
    keys.add(cache_key(teacher, Batches((images.flip(0), labels, torch.arange(40)), 8)))
    assert len(keys) == 9


def test_changed_weights_do_not_find_the_old_outputs(tmp_path):
    images, labels = images_of()
    data = Batches((images, labels, torch.arange(40)), 8)
    with TeacherCache(tmp_path, cache_key(teacher_of(0), data)) as cache:
        cache.fetch(torch.arange(8), lambda: images[:8])
    assert len(TeacherCache(tmp_path, cache_key(teacher_of(0), data))) == 8
    assert len(TeacherCache(tmp_path, cache_key(teacher_of(1), data))) == 0


def test_a_random_transform_is_refused():
    images, labels = images_of()

    def random(batch, generator):
        return shifted(batch[0], generator), *batch[1:]

    def from_global_state(images, generator):
        return images + torch.rand(1)

    class RandomSet(torch.utils.data.Dataset):
        def __len__(self):
            return 40

        def __getitem__(self, row):
            return images[row] + torch.rand(1), labels[row], row

    for data in (
        Batches((images, labels, torch.arange(40)), 8, transform=random),
        Batches((images, labels, torch.arange(40)), 8, transform=PerSample(from_global_state, 0)),
        Batches(RandomSet(), 8),
    ):
        with pytest.raises(ValueError, match=r"came out differently twice.*augment_seed"):
            data_digest(data)
    with pytest.raises(TypeError, match="data: expected Batches, .* got function"):
        data_digest(random)
    with pytest.raises(ValueError, match=r"indices: expected int64 \[40\].*got torch.float32 \[40, 1, 8, 8\]"):
        data_digest(Batches((images,), 8, transform=PerSample(shifted, 0)))


def test_a_teacher_that_changes_is_refused():
    with pytest.raises(ValueError, match="0.weight and 5 more parameters require gradients"):
        teacher_digest(network(4, 0).eval())
    with pytest.raises(ValueError, match="training mode"):
        teacher_digest(network(4, 0).requires_grad_(False))


@pytest.mark.parametrize("damage", ["truncate", "empty", "garbage", "foreign"])
def test_a_damaged_shard_is_computed_again_and_the_others_stay(tmp_path, damage):
    with TeacherCache(tmp_path, KEY, shard_bytes=1) as cache:
        for ids in torch.arange(12).split(4):
            cache.fetch(ids, lambda ids=ids: ids.float())
    shards = sorted(cache.folder.iterdir())
    if damage == "truncate":
        os.truncate(shards[1], shards[1].stat().st_size - 3)
    elif damage == "foreign":
        with TeacherCache(tmp_path / "other", KEY[::-1]) as other:
            other.fetch(torch.arange(4, 8), lambda: torch.zeros(4))
        shards[1].write_bytes(next(other.folder.iterdir()).read_bytes())
    else:
        shards[1].write_bytes(b"" if damage == "empty" else os.urandom(200))
    with pytest.warns(UserWarning, match=f"{shards[1].name} is damaged .*its samples are computed again"):
        cache = TeacherCache(tmp_path, KEY, shard_bytes=1)
    assert len(cache) == 8
    calls = []
    for ids in torch.arange(12).flip(0).split(4):
        assert torch.equal(cache.fetch(ids, lambda ids=ids: calls.append(ids) or ids.float()), ids.float())
    assert len(calls) == 1 and calls[0].tolist() == [7, 6, 5, 4]
    assert len(TeacherCache(tmp_path, KEY)) == 12 and shards[0].exists() and shards[2].exists()


def test_an_interrupted_write_leaves_no_shard(tmp_path, monkeypatch):
    cache = TeacherCache(tmp_path, KEY)
    cache.fetch(torch.arange(4), lambda: torch.zeros(4))
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        cache.flush()
    assert list(cache.folder.iterdir()) == []


def test_two_processes_share_a_folder(tmp_path):
    one, two = TeacherCache(tmp_path, KEY), TeacherCache(tmp_path, KEY)
    one.fetch(torch.arange(4), lambda: torch.zeros(4))
    two.fetch(torch.arange(2, 6), lambda: torch.zeros(4))
    one.flush()
    two.flush()
    assert len(TeacherCache(tmp_path, KEY)) == 6


def test_bad_use_is_said_clearly(tmp_path):
    cache = TeacherCache(tmp_path, KEY)
    ids = torch.arange(3)
    with pytest.raises(ValueError, match="key: expected at least 16 hexadecimal digits"):
        TeacherCache(tmp_path, "../x")
    with pytest.raises(TypeError, match=r"ids: expected the samples' numbers, int64 \[B\], got torch.float32 \[3\]"):
        cache.fetch(ids.float(), None)
    with pytest.raises(ValueError, match="ids must not be negative, got -1"):
        cache.fetch(ids - 1, None)
    with pytest.raises(ValueError, match=r"teacher output /a has shape \[2, 5\]; only tensors of 3 rows"):
        cache.fetch(ids, lambda: {"a": torch.zeros(2, 5)})
    with pytest.raises(TypeError, match="/a/0: expected tensors in dicts, lists and tuples, got str"):
        cache.fetch(ids, lambda: {"a": ["x"]})
    cache.fetch(ids, lambda: torch.zeros(3, 5))
    with pytest.raises(ValueError, match=r"was torch.float32 \[5\] a sample and is torch.float32 \[6\]; .* one size"):
        cache.fetch(ids + 3, lambda: torch.zeros(3, 6))
    with pytest.raises(ValueError, match="teacher outputs were 0 and are {'tuple'"):
        cache.fetch(ids + 3, lambda: (torch.zeros(3, 5),))


def box_losses(cache, augment_seed=None, transform=None):
    from flambeau.training.distillation.box import DistillBox

    images, labels = images_of()
    loader = {"dataset_id": "all", "kwargs": {"batch_size": 8}, "transform": transform, "augment_seed": augment_seed}
    config = {
        "num_epochs": 2,
        "train_data_loader": {**loader, "cache_output": cache},
        "teacher": {"requires_grad": False, "forward_hook": {"output": ["2"]}},
        "student": {"forward_hook": {"output": ["2"]}},
        "optimizer": {"key": "SGD", "kwargs": {"lr": 0.1}},
        "criterion": {
            "key": "WeightedSumLoss",
            "kwargs": {
                "sub_terms": {
                    "kd": {"criterion": {"key": "KDLoss"}},
                    "at": {"criterion": {"key": "AttentionTransfer"}, "student": "2", "teacher": "2"},
                }
            },
        },
    }
    box = DistillBox(teacher_of(), network(4, 1), {"all": (images, labels)}, config, seed=3)
    calls = []
    box.teacher.register_forward_hook(lambda *_: calls.append(1))
    return [entry["loss"] for entry in box.run()[0].history], len(calls)


def test_a_config_trains_alike_with_and_without_cache_output(tmp_path):
    """Logits and a hooked feature, two epochs in two orders."""
    for name, arguments in (("plain", {}), ("augmented", {"augment_seed": 5, "transform": shifted})):
        plain, runs = box_losses(None, **arguments)
        cached, fewer = box_losses(str(tmp_path / name), **arguments)
        assert cached == plain and (runs, fewer) == (10, 5)
        assert box_losses(str(tmp_path / name), **arguments) == (plain, 0)  # from the files of the run before
    with pytest.raises(ValueError, match="came out differently twice"):
        box_losses(str(tmp_path / "random"), transform=shifted)
