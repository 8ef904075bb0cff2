"""The timed ways give the same losses, and the pruned one runs less."""

import torch
from torch import nn

from flambeau.data import Batches
from flambeau.experiment.distillation import speed
from flambeau.models.vision import ConvNet


def task():
    torch.manual_seed(0)
    data = Batches((torch.rand(40, 1, 8, 8), torch.randint(10, (40,)), torch.arange(40)), 10)
    return ConvNet((8, 16, 16)), ConvNet((4, 8)), data


def test_a_pruned_hint_stage_has_the_losses_of_the_full_one_and_runs_less():
    teacher, student, data = task()
    calls = []
    teacher.layer3.register_forward_hook(lambda *_: calls.append(1))
    times = speed.hint_stage_times(
        teacher,
        student,
        nn.Conv2d(4, 16, 1),
        data,
        teacher_paths=("layer1", "layer2"),
        student_paths=("layer1",),
        epochs=2,
    )
    assert times.gap("full", "sequential") == 0 and len(times.losses["full"]) == 12
    assert len(calls) == 12  # the full way only
    assert times.losses["full"][-1] < times.losses["full"][0]


def test_a_cached_teacher_gives_the_losses_of_a_running_one(tmp_path):
    teacher, student, data = task()
    calls = []
    teacher.register_forward_hook(lambda *_: calls.append(1))
    times = speed.cached_teacher_times(teacher, student, data, tmp_path, epochs=2)
    assert times.gap("plain", "cached") == 0 and len(times.losses["cached"]) == 12
    assert len(calls) == 12 + 4  # every epoch, and the first one
    times.losses["cached"][3] += 0.5
    assert times.gap("plain", "cached") == 0.5


def test_operations_are_counted():
    assert speed.flops(nn.Sequential(nn.Conv2d(1, 4, 3, padding=1)), torch.rand(1, 8, 8)) == 2 * 64 * 4 * 9
    teacher, student, data = task()
    images, labels, _ = next(data.all(8))
    assert speed.hook_overhead(teacher, student, images, ["layer1"], repeats=1) > 0
    assert 0 <= speed.bf16_gap(teacher.eval(), student.eval(), images, labels) < 0.05
