"""What pruned hint stages and stored teacher outputs save, in one interleaved run each, with the losses beside it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from flambeau.data import Batches
from flambeau.models.vision import resnet18, resnet34
from flambeau.objectives.distillation import KDLoss
from flambeau.ops.bench import interleaved
from flambeau.training.distillation.cache import TeacherCache, cache_key
from flambeau.training.distillation.hooks import ForwardHookManager
from flambeau.training.distillation.sequential import build_sequential
from flambeau.training.loop import to_device
from flambeau.training.state import device_of


@dataclass
class EpochTimes:
    """Seconds of the fastest epoch after the first, and the losses of all steps, of two ways to the same result."""

    seconds: dict[str, float]
    losses: dict[str, list[float]] = field(default_factory=dict)

    def speedup(self, baseline: str, ours: str) -> float:
        return self.seconds[baseline] / self.seconds[ours]

    def gap(self, baseline: str, ours: str) -> float:
        """Largest difference of the losses of one step."""
        pairs = zip(self.losses[baseline], self.losses[ours], strict=True)
        return max(abs(first - second) for first, second in pairs)


def hint_stage_times(
    teacher: nn.Module,
    student: nn.Module,
    adaptation: nn.Module,
    data: Batches,
    *,
    teacher_paths: Sequence[str],
    student_paths: Sequence[str],
    epochs: int = 3,
    seed: int = 0,
) -> EpochTimes:
    """Epochs of a hint stage (FitNets, arXiv 1412.6550) with hooks on the full models, and with pruned ones.

    The student's feature after `student_paths`, adapted, is to match the teacher's after `teacher_paths` (mean squared
    error, SGD); the sequential way runs those modules alone.

    Args:
        epochs: timed ones; one before them is not.
    """
    teacher.eval()
    pruned_teacher = build_sequential(teacher, teacher_paths)

    def full() -> Callable[[], None]:
        model, adapted = copy.deepcopy((student, adaptation))
        manager = ForwardHookManager()
        manager.add_hook(model, student_paths[-1], requires_input=False, name="student")
        manager.add_hook(teacher, teacher_paths[-1], requires_input=False, name="teacher")

        def features(x: Tensor) -> tuple[Tensor, Tensor]:
            with torch.no_grad():
                teacher(x)
            model(x)
            io = manager.pop_io_dict()
            return adapted(io["student"]["output"]), io["teacher"]["output"]

        return _hint_epochs(features, [*model.parameters(), *adapted.parameters()], data, seed, losses["full"])

    def sequential() -> Callable[[], None]:
        model, adapted = copy.deepcopy((student, adaptation))
        pruned = build_sequential(model, student_paths)

        def features(x: Tensor) -> tuple[Tensor, Tensor]:
            with torch.no_grad():
                target = pruned_teacher(x)
            return adapted(pruned(x)), target

        return _hint_epochs(features, [*pruned.parameters(), *adapted.parameters()], data, seed, losses["sequential"])

    losses: dict[str, list[float]] = {"full": [], "sequential": []}
    return EpochTimes(_seconds({"full": full(), "sequential": sequential()}, epochs, device_of(teacher)), losses)


def cached_teacher_times(
    teacher: nn.Module, student: nn.Module, data: Batches, folder: Path, *, epochs: int = 3, seed: int = 0
) -> EpochTimes:
    """Epochs of distillation (Hinton et al., arXiv 1503.02531) that run the teacher, and that store its logits.

    Args:
        data: batches of images, labels and the samples' numbers.
        folder: of the cache; the first epoch, which is not timed, fills it.
        epochs: timed ones.
    """
    teacher.eval().requires_grad_(False)
    losses: dict[str, list[float]] = {"plain": [], "cached": []}
    cache = TeacherCache(folder, cache_key(teacher, data, "logits"))

    def stored(x: Tensor, numbers: Tensor) -> Tensor:
        return cache.fetch(numbers, partial(teacher, x))

    def plain(x: Tensor, numbers: Tensor) -> Tensor:
        return teacher(x)

    runs = {
        name: _kd_epochs(copy.deepcopy(student), logits, data, seed, losses[name])
        for name, logits in (("plain", plain), ("cached", stored))
    }
    times = EpochTimes(_seconds(runs, epochs, device_of(teacher)), losses)
    cache.flush()
    return times


def hook_overhead(
    teacher: nn.Module, student: nn.Module, images: Tensor, paths: Sequence[str], repeats: int = 20
) -> float:
    """Time of the forward passes of both networks with hooks on `paths`, over that without."""
    hooked_teacher, hooked_student = copy.deepcopy((teacher, student))
    managers = []
    for model in (hooked_teacher, hooked_student):
        managers.append(ForwardHookManager())
        for path in paths:
            managers[-1].add_hook(model, path)

    def bare() -> None:
        with torch.no_grad():
            teacher(images)
        student(images)

    def hooked() -> None:
        with torch.no_grad():
            hooked_teacher(images)
        hooked_student(images)
        for manager in managers:
            manager.pop_io_dict()

    seconds = _seconds({"bare": bare, "hooked": hooked}, repeats, images.device)
    return seconds["hooked"] / seconds["bare"]


def bf16_gap(teacher: nn.Module, student: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Relative difference of the distillation loss under bfloat16 autocast to that in float32."""
    loss, values = KDLoss(temperature=4.0, alpha=0.5), []
    for reduced in (False, True):
        with torch.no_grad(), torch.autocast(images.device.type, torch.bfloat16, enabled=reduced):
            values.append(float(loss(student(images), teacher(images), labels)))
    return abs(values[1] - values[0]) / values[0]


def on_gpu(device: torch.device, seed: int = 0) -> tuple[float, float]:
    """:func:`hook_overhead` and :func:`bf16_gap` of ResNet-34 and ResNet-18, 64 images of 224 pixels."""
    torch.manual_seed(seed)
    teacher, student = resnet34().to(device).eval(), resnet18().to(device)
    images, labels = torch.rand(64, 3, 224, 224, device=device), torch.randint(1000, (64,), device=device)
    return hook_overhead(teacher, student, images, ["layer3", "layer4"]), bf16_gap(teacher, student, images, labels)


def flops(model: nn.Module, image: Tensor) -> int:
    """Floating-point operations of one forward pass of an image [C, H, W]."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        copy.deepcopy(model).eval()(image[None])
    return counter.get_total_flops()


def _hint_epochs(
    features: Callable[[Tensor], tuple[Tensor, Tensor]],
    parameters: Sequence[Tensor],
    data: Batches,
    seed: int,
    losses: list[float],
) -> Callable[[], None]:
    optimizer = torch.optim.SGD(parameters, 0.01)

    def epoch() -> None:
        for batch in _epoch_of(data, len(losses), seed, parameters[0].device):
            ours, target = features(batch[0])
            _step(optimizer, F.mse_loss(ours, target), losses)

    return epoch


def _kd_epochs(
    student: nn.Module, logits: Callable[[Tensor, Tensor], Tensor], data: Batches, seed: int, losses: list[float]
) -> Callable[[], None]:
    optimizer, loss = torch.optim.SGD(student.train().parameters(), 0.01), KDLoss(temperature=4.0, alpha=0.5)

    def epoch() -> None:
        for x, y, numbers in _epoch_of(data, len(losses), seed, device_of(student)):
            with torch.no_grad():
                target = logits(x, numbers)
            _step(optimizer, loss(student(x), target, y), losses)

    return epoch


def _epoch_of(data: Batches, done: int, seed: int, device: torch.device) -> Any:
    generator = torch.Generator().manual_seed(seed)
    return (to_device(data.batch(step, generator), device) for step in range(done, done + len(data)))


def _step(optimizer: torch.optim.Optimizer, loss: Tensor, losses: list[float]) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())


def _seconds(runs: dict[str, Callable[[], None]], epochs: int, device: torch.device) -> dict[str, float]:
    """CPU time over all threads, which other programs disturb least; wall time where a GPU computes."""
    if device.type == "cuda":
        return {name: time.wall for name, time in interleaved(runs, epochs, torch.cuda.synchronize).items()}
    return {name: time.cpu for name, time in interleaved(runs, epochs).items()}
