"""torchdistill: knowledge distillation from one configuration file, without a change to teacher or student."""

from __future__ import annotations

from statistics import mean
from typing import Any

import torch
from torch import nn

from flambeau.data import Batches
from flambeau.data.images.augmented_digits import augmented_digits
from flambeau.experiment import Claim, experiment
from flambeau.experiment.distillation import digits, figures, speed
from flambeau.experiment.distillation.own import run_config

# fmt: off
CLAIMS = [
    Claim("full_labels", "1000 labelled digits: best mean test accuracy of KD, AT and FitNet, minus that of "
          "cross-entropy", unit="points", at_least=-0.3, paper="71.56 (FT) vs 69.76 % (ResNet-18 on ImageNet)"),
    Claim("few_labels", "10 labels a class and 1000 images without: test accuracy of KD, minus that of cross-entropy "
          "with the labels alone", unit="points", at_least=3.0),
    Claim("hint_time", "epoch of a hint stage with hooks on both whole networks, over one with `sequential`", unit="x",
          at_least=1.3),
    Claim("hint_losses", "largest difference of the losses of the two", at_most=0.0),
    Claim("teacher_cost", "operations of a forward pass of the teacher, over those of the student", unit="x",
          at_least=5.0),
    Claim("cache_time", "epoch that runs the teacher, over one from the second on with its stored outputs", unit="x",
          at_least=1.3),
    Claim("cache_losses", "largest difference of the losses of the two", at_most=0.0),
    Claim("hook_time", "forward passes of ResNet-34 and ResNet-18 with hooks, over those without, on a GPU", unit="x",
          at_most=1.03, needs="gpu"),
    Claim("bf16", "relative difference of their KD loss under bfloat16 autocast to float32", at_most=0.02, needs="gpu"),
    Claim("imagenet", "top-1 accuracy of ResNet-18 taught by ResNet-34 on ImageNet", unit="%",
          paper="KD 71.37, AT 70.90, FT 71.56, CRD 70.93, L2 71.08, PAD-L2 71.71"),
]
PRESETS: dict[str, dict[str, Any]] = {
    "smoke": {"repetitions": 1, "views": 1, "steps": 2, "epochs": 1},
    "paper": {"config": "flambeau:imagenet/kd-resnet18_from_resnet34.yaml"},
}
# fmt: on


@experiment("torchdistill", claims=CLAIMS, presets=PRESETS)
def run(
    run: Any,
    *,
    config: str | None = None,
    test_only: bool = False,
    student_only: bool = False,
    allow: tuple[str, ...] = ("flambeau", "torch"),
    repetitions: int = 3,
    views: int = 4,
    steps: int | None = None,
    epochs: int = 3,
) -> None:
    """Distil a small convolutional network from a larger one on digits, or do what your own config says.

    config: a YAML file with your data, models and stages, or "flambeau:NAME.yaml", a ready one; None compares the
        methods on digits.
    test_only: with `config`, test the models as they are in their files, without training.
    student_only: with `config`, test the student and not the teacher.
    allow: with `config`, packages that it may import from; what it imports is run.
    repetitions: students of each method, from other starts.
    views: disturbed versions of each training digit.
    steps: of each stage at most, for a quick look; None trains as the configs say.
    epochs: timed ones, of each way to the same losses.
    """
    if config is not None:
        tested = run_config(run, config, test_only=test_only, student_only=student_only, allow=allow)
        if "imagenet" in config and "student" in tested:
            run.measure("imagenet", ours=tested["student"]["accuracy"], value=tested["student"]["accuracy"])
        for claim in CLAIMS:
            if claim.name not in run.outcomes:
                run.unmeasured(claim.name, why="it is about other data than this config's")
        return
    test = augmented_digits("test", seed=run.seed)
    teacher, _ = digits.train_row(run, "teacher", None, views=views, steps=steps)
    teacher_accuracy = digits.accuracy(teacher, test)
    full, curves = digits.compare(run, digits.ROWS, teacher, repetitions=repetitions, views=views, steps=steps)
    few, _ = digits.compare(run, digits.FEW, teacher, repetitions=repetitions, views=views, steps=steps)
    taught = {name: mean(values) for name, values in full.items() if name != "CE"}
    best, base = max(taught, key=lambda name: taught[name]), mean(full["CE"])
    run.measure("full_labels", ours=taught[best], baseline=base, value=100 * (taught[best] - base))
    kd, ce = mean(few["KD (T=4)"]), mean(few["CE"])
    run.measure("few_labels", ours=kd, baseline=ce, value=100 * (kd - ce))
    run.figure("accuracy", figures.accuracies_figure({"1000 labels": full, "100 labels": few}, teacher_accuracy))
    run.table("accuracy", [*digits.table("1000", full), *digits.table("100", few)])
    run.note(
        f"The teacher classifies {100 * teacher_accuracy:.2f} % of the 797 test digits; best of the methods: {best}."
    )
    run.figure("losses", figures.losses_figure(curves))
    _efficiency(run, teacher, views, epochs)
    if run.device.type == "cuda":
        hook_time, bf16 = speed.on_gpu(run.device, run.seed)
        run.measure("hook_time", value=hook_time)
        run.measure("bf16", value=bf16)


def _efficiency(run: Any, teacher: nn.Module, views: int, epochs: int) -> None:
    """What `sequential` and the cache save, with the losses of both ways."""
    train = augmented_digits(views=views, seed=run.seed)
    assert train.labels is not None
    data = Batches((train.images, train.labels, torch.arange(len(train))), 50)
    torch.manual_seed(run.seed)
    student = digits.new_student().to(run.device)
    regressor = nn.Conv2d(24, 64, 1).to(run.device)
    hint = speed.hint_stage_times(
        teacher, student, regressor, data, teacher_paths=("layer1", "layer2"), student_paths=("layer1",), epochs=epochs,
        seed=run.seed,
    )  # fmt: skip
    seconds = hint.seconds
    run.measure(
        "hint_time", ours=seconds["sequential"], baseline=seconds["full"], value=hint.speedup("full", "sequential")
    )
    run.measure("hint_losses", value=hint.gap("full", "sequential"))
    image = train.images[0].to(run.device)
    costs = speed.flops(student, image), speed.flops(teacher, image)
    run.measure("teacher_cost", ours=costs[1], baseline=costs[0], value=costs[1] / costs[0])
    kd = speed.cached_teacher_times(
        teacher, student, data, run.folder / "train" / "timed", epochs=epochs, seed=run.seed
    )
    run.measure(
        "cache_time", ours=kd.seconds["cached"], baseline=kd.seconds["plain"], value=kd.speedup("plain", "cached")
    )
    run.measure("cache_losses", value=kd.gap("plain", "cached"))
    run.figure("epochs", figures.epoch_times_figure({"hint stage": hint.seconds, "distillation": kd.seconds}))
