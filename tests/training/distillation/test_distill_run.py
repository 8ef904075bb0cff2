"""A run from a file: what it writes, that it resumes, that it tests; weights in files; batches by worker processes."""

import json
import pickle
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from flambeau.training.distillation import ConfigError, DistillBox, distill, evaluate_models, get_box, load_config
from flambeau.training.distillation.loading import LoadedBatches, build_batches
from flambeau.training.distillation.weights import load_weights, read_weights, write_weights

CONFIG = """
datasets:
  &train digits/train: !import_call {key: flambeau.data.digits}
  &test digits/test: !import_call {key: flambeau.data.digits}
models:
  teacher_model:
    key: &teacher torch.nn.Sequential
    kwargs: {}
  student_model:
    key: torch.nn.Sequential
    dst_ckpt: !join [FOLDER, /student.pt]
train:
  log_freq: 10
  num_epochs: 1
  num_steps: 6
  train_data_loader:
    dataset_id: *train
    sampler: {class_or_func: !import_get {key: torch.utils.data.RandomSampler}, kwargs: }
    kwargs: {batch_size: 64, num_workers: 0, pin_memory: True, drop_last: False}
    cache_output:
  val_data_loader:
    dataset_id: *test
    sampler: &val_sampler {class_or_func: !import_get {key: torch.utils.data.SequentialSampler}, kwargs: }
    kwargs: {batch_size: 512, drop_last: False}
  teacher: {forward_proc: forward_batch_only, sequential: [], forward_hook: {input: [], output: [layer]}, wrapper: , requires_grad: False}
  student:
    forward_proc: forward_batch_only
    adaptations:
    sequential: []
    frozen_modules: []
    forward_hook: {input: [], output: [layer]}
    wrapper: DistributedDataParallel
    requires_grad: True
  optimizer: {key: SGD, kwargs: {lr: 0.1, momentum: 0.9, weight_decay: 0.0001}}
  scheduler: {key: MultiStepLR, kwargs: {milestones: [30, 60, 90], gamma: 0.1}}
  criterion:
    key: WeightedSumLoss
    kwargs:
      sub_terms:
        ce:
          criterion: {key: CrossEntropyLoss, kwargs: {reduction: mean}}
          criterion_wrapper:
            key: SimpleLossWrapper
            kwargs:
              input: {is_from_teacher: False, module_path: '.', io: output}
              target: {uses_label: True}
          weight: 1.0
        at_loss:
          criterion:
            key: AttentionTransfer
            kwargs:
              at_pairs:
                pair1: {teacher: {io: output, path: layer}, student: {io: output, path: layer}, weight: 1}
          weight: 100.0
        kd:
          criterion: {key: KDLoss, kwargs: {student_module_path: '.', student_module_io: output, teacher_module_path: '.', teacher_module_io: output, temperature: 1.0, alpha: 0.5}}
          weight: 1.0
test:
  test_data_loader:
    dataset_id: *test
    sampler: *val_sampler
    kwargs: {batch_size: 600, num_workers: 0, pin_memory: True, drop_last: False}
"""  # fmt: skip  # noqa: E501


def write_config(folder, **changes):
    path = folder / "config.yaml"
    text = CONFIG.replace("FOLDER", str(folder))
    for old, new in changes.items():
        text = text.replace(old, new)
    path.write_text(text)
    return path


class Net(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.layer = nn.Conv2d(1, width, 3, padding=1)
        self.head = nn.Linear(width * 64, 10)

    def forward(self, x):
        return self.head(self.layer(x).relu().flatten(1))


@pytest.fixture
def config(tmp_path, monkeypatch):
    """The file above, and the test's own networks in place of what its keys name."""
    widths = iter([6, 3] * 10)
    monkeypatch.setattr("flambeau.training.distillation.models.find", lambda *_: lambda **__: Net(next(widths)))
    return write_config(tmp_path)


def test_a_run_writes_its_account_and_returns_at_once_when_repeated(config, tmp_path):
    first = distill(config, folder=tmp_path / "run", device="cpu", seed=1)
    assert set(first["test"]) == {"student", "teacher"} and 0 <= first["test"]["student"]["accuracy"] <= 100
    assert first["test"]["student"]["top5"] >= first["test"]["student"]["accuracy"]
    run = tmp_path / "run"
    assert (run / "config.yaml").read_text() == config.read_text()
    assert json.loads((run / "environment.json").read_text())["seed"] == 1
    assert json.loads((run / "results.json").read_text())["test"] == first["test"]
    assert "stage 1 of 1: 6 steps" in (run / "log.txt").read_text()
    entries = [json.loads(line) for line in (run / "stage1" / "metrics.jsonl").read_text().splitlines()]
    assert len(entries) == 6 and {"loss", "ce", "at_loss_pair1", "kd", "lr"} <= set(entries[0])
    assert "accuracy" in entries[-1]
    again = distill(config, folder=run, device="cpu", seed=1)
    assert again["test"] == first["test"] and again["fits"][0].seconds == first["fits"][0].seconds
    for file in (tmp_path / "student.pt", run / "student.safetensors"):
        saved = read_weights(file)
        assert all(torch.equal(value, saved[name]) for name, value in first["student"].state_dict().items())


def test_models_are_tested_without_training(config, tmp_path):
    trained = distill(config, device="cpu")
    tested = evaluate_models(config, device="cpu")
    assert tested["student"] == trained["test"]["student"]  # of dst_ckpt
    assert set(evaluate_models(config, device="cpu", student_only=True)) == {"student"}
    loaded = load_config(config)
    with pytest.raises(ConfigError, match="no test.test_data_loader"):
        evaluate_models({name: value for name, value in loaded.items() if name != "test"})
    mine = evaluate_models(
        config, device="cpu", evaluate=lambda model, batches: {"seen": sum(len(y) for _, y in batches)}
    )
    assert mine["student"] == {"seen": 1797}


def test_a_cached_teacher_gives_the_same_losses_and_is_not_run_again(config, tmp_path):
    plain = get_box(load_config(config), "cpu").run()[0]
    path = write_config(tmp_path, **{"cache_output:\n": f"cache_output: {tmp_path / 'cache'}\n"})
    config = load_config(path)
    for misses in (384, 0):
        box = get_box(config, "cpu")
        cache = box.stage.cache.value
        fit = box.run()[0]
        assert [h["loss"] for h in fit.history] == [h["loss"] for h in plain.history]
        assert cache.misses == misses


class Noisy(Dataset):
    """Items with random numbers of every generator."""

    def __len__(self):
        return 10

    def __getitem__(self, row):
        return torch.tensor(
            [row, random.random(), np.random.rand(), torch.rand(()).item()], dtype=torch.float64
        ), row % 3


def read(batches, steps, seed=5):
    generator = torch.Generator().manual_seed(seed)
    return [batches.batch(step, generator) for step in steps]


def test_batches_do_not_depend_on_workers_or_on_where_reading_begins():
    plain = LoadedBatches(Noisy(), 4, drop_last=False, index=True)
    assert len(plain) == 3
    expected = read(plain, range(7))
    before = torch.get_rng_state()
    for got in (read(LoadedBatches(Noisy(), 4, drop_last=False, index=True, workers=2), range(7)), read(plain, [0])):
        for batch, other in zip(got, expected):
            assert all(torch.equal(a, b) for a, b in zip(batch, other))
    later = LoadedBatches(Noisy(), 4, drop_last=False, index=True, workers=1)
    assert torch.equal(read(later, [5])[0][0], expected[5][0])
    assert torch.equal(torch.get_rng_state(), before)
    x, y, index = expected[0]
    assert torch.equal(x[:, 0].long(), index) and torch.equal(index % 3, y)
    assert not torch.equal(expected[0][0][:, 1:], read(plain, [0], seed=6)[0][0][:, 1:])
    first, second = expected[:3], expected[3:6]  # an item looks different in the next epoch
    rows = [{int(row[0]): row[1:] for batch in epoch for row in batch[0]} for epoch in (first, second)]
    assert len(rows[0]) == 10 and not any(torch.equal(rows[0][row], rows[1][row]) for row in rows[0])


def test_an_augment_seed_fixes_each_item():
    section = {"kwargs": {"batch_size": 5}, "augment_seed": 3}
    batches = build_batches(section, Noisy(), train=True, allow=())
    by_row = [
        {int(row[0]): row[1:] for batch in read(batches, steps) for row in batch[0]} for steps in ((0, 1), (2, 3))
    ]
    assert all(torch.equal(by_row[0][row], by_row[1][row]) for row in range(10))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_weights_are_read_safely(tmp_path):
    net = Net(2)
    for name in ("w.pt", "w.safetensors"):
        write_weights(net, tmp_path / name)
        assert read_weights(tmp_path / name).keys() == net.state_dict().keys()
    torch.save({"model": {f"module.{k}": v for k, v in net.state_dict().items()}}, tmp_path / "ddp.pth")
    assert read_weights(tmp_path / "ddp.pth").keys() == net.state_dict().keys()
    target = tmp_path / "ran"

    class Attack:
        def __reduce__(self):
            return open, (str(target), "w")

    (tmp_path / "attack.pt").write_bytes(pickle.dumps(Attack()))
    torch.save({"model": Attack()}, tmp_path / "attack2.pt")
    for name in ("attack.pt", "attack2.pt"):
        with pytest.raises(ValueError, match="not a file of weights that can be read safely"):
            read_weights(tmp_path / name)
    assert not target.exists()
    with pytest.raises(ValueError, match="ends in .safetensors"):
        write_weights(net, tmp_path / ".bashrc")


def test_weights_that_do_not_fit_are_named(tmp_path):
    write_weights(Net(3), tmp_path / "w.pt")
    with pytest.raises(ValueError, match=r"src_ckpt: .* is \[.*\] in the model and \[.*\] in"):
        load_weights(Net(2), tmp_path / "w.pt")
    with pytest.raises(ValueError, match="lacks .*weight"):
        load_weights(nn.Linear(2, 2), tmp_path / "w.pt")


def test_boxes_take_sets_of_images_with_a_transform(config):
    loaded = load_config(config)
    section = loaded["train"]["train_data_loader"]
    section["transform"] = lambda images, generator: images + torch.rand(len(images), 1, 1, 1, generator=generator)
    box = get_box(loaded, "cpu")
    assert isinstance(box, DistillBox)
    x, y, supp = next(box.batches(0))
    assert x.shape == (64, 1, 8, 8) and x.amax() > 1 and supp is None
    section["augment_seed"] = 1
    x, y, supp = next(get_box(loaded, "cpu").batches(0))
    assert supp["index"].shape == (64,)
