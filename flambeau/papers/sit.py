"""SiT: a vision transformer for a few thousand images, by repairing corrupted ones and telling views apart."""

from __future__ import annotations

from collections.abc import Callable
from statistics import fmean
from typing import Any, Literal

import torch

from flambeau.data import ImageSet, image_folder
from flambeau.data.images.digit_canvases import digit_canvases
from flambeau.experiment import Claim, experiment
from flambeau.experiment.representation import sit_arms
from flambeau.experiment.representation.figures import loss_curves
from flambeau.models.vision import ViT
from flambeau.objectives.masking import gmml_corrupt
from flambeau.symbolic import symbolize
from flambeau.training import Trainer, WarmupCosine
from flambeau.training.self_supervised import MAE, SiT

# fmt: off
CLAIMS = [
    Claim("reconstruction", "L1 on corrupted pixels: how far it falls from step 20 to the last 20 steps",
          unit="%", at_least=25.0),
    Claim("linear_probe", "linear probe on mean patch tokens, against the same network before training",
          unit="points", at_least=5.0),
    Claim("fine_tuning", "fine-tuned with few labels, against the same network from scratch",
          paper="pre-training on the small set itself beats training from scratch", unit="points", at_least=-1.0),
    Claim("digits", "8x8 digits, patch 2, 10 labels a class: mean gain of fine-tuning over scratch, 5 draws",
          unit="points", at_least=0.0),
    Claim("against_mae", "fine-tuned with few labels, against MAE of as many steps", unit="points"),
    Claim("against_cnn", "fine-tuned with few labels, against a CNN on the same labels; at this size the CNN wins",
          unit="points"),
    Claim("gpu_bf16", "ViT-S/16 in bf16 with 256 images a step: the loss of the last steps over that of the first",
          unit="x", at_most=1.0, needs="gpu"),
]
PRESETS: dict[str, dict[str, Any]] = {
    "smoke": {
        "data.views": 1, "training.steps": 22, "batch_size": 8, "fine_tuning.steps": 2, "labels_per_class": 3,
        "draws": 1, "probe_cases": 60,
    },
    "paper": {
        "data": "stl10/", "size": 224, "labels_per_class": 500, "batch_size": 256, "crop_scale": (0.2, 1.0),
        "vit.patch": 16, "vit.width": 384, "vit.depth": 12, "vit.heads": 6, "vit.drop_path": 0.1,
        "hidden": 4096, "mae.width": 512, "mae.depth": 8, "mae.heads": 16,
        "corrupt.kinds": ("zeros",), "corrupt.alien": 0.3, "training.epochs": 800, "training.steps": None,
        "training.optimizer.lr": 5e-4, "training.optimizer.weight_decay": 0.04, "training.schedule.warmup": 0.0125,
        "training.precision": "bf16", "fine_tuning.steps": 10_000, "fine_tuning.optimizer.lr": 5e-4,
    },
}
# fmt: on
ADAMW = symbolize(torch.optim.AdamW)


@experiment("sit", claims=CLAIMS, presets=PRESETS)
def run(
    run: Any,
    *,
    data: ImageSet | str = symbolize(digit_canvases)(size=24, contrast=0.3),
    size: int | tuple[int, int] = 64,
    version: Literal[1, 2] = 2,
    tasks: tuple[str, ...] = ("rec", "con"),
    lambda_rec: float = 5.0,
    not_square: Literal["raise", "pad", "half"] = "raise",
    corrupt: Callable[..., Any] = symbolize(gmml_corrupt).partial(drop=0.5, kinds=("noise",), alien=0.5),
    vit: Callable[..., ViT] = symbolize(ViT).partial(patch=4, width=64, depth=3, heads=4),
    hidden: int = 256,
    mae: Callable[..., MAE] = symbolize(MAE).partial(width=48, depth=1, heads=4),
    crop_scale: tuple[float, float] = (0.6, 1.0),
    batch_size: int = 24,
    training: Trainer = symbolize(Trainer)(
        steps=480, optimizer=ADAMW.partial(lr=6e-3, weight_decay=0.05), schedule=symbolize(WarmupCosine)(0.2), clip=3.0
    ),
    labels_per_class: int = 20,
    fine_tuning: Trainer = symbolize(Trainer)(
        steps=200, optimizer=ADAMW.partial(lr=4e-3, weight_decay=0.05), schedule=symbolize(WarmupCosine)(0.1), clip=1.0
    ),
    layer_decay: float = 0.8,
    fine_tuning_crop: tuple[float, float] = (0.7, 1.0),
    probe_cases: int = 1000,
    draws: int = 5,
    ablations: bool = False,
) -> None:
    """Pre-train a vision transformer on images without labels, then fine-tune it with a few labels a class.

    data: images, or a folder of them; with class folders, or none to pre-train only.
    size: height and width to which the pictures of a folder are brought, a multiple of the patch.
    version: the recipe, 2 (average teacher) or 1 (three tasks, uncertainty weights).
    tasks: of it; "rec" repairs corrupted images, "con" compares two views, "rot" (version 1) tells rotations.
    lambda_rec: weight of the repair beside the other task.
    not_square: how rotations treat such images: "pad" them, turn them by "half" only, or "raise".
    corrupt: what is done to the images.
    vit: the network; size and channels are the images' own.
    hidden: width of the contrastive head.
    mae: the masked autoencoder it is compared with, and its decoder.
    crop_scale: smallest and largest share of an image that a view shows.
    batch_size: images a step.
    training: of the self-supervised methods.
    labels_per_class: labelled images of each class for fine-tuning.
    fine_tuning: of every network that is compared; the rate is the best of several for the ViT from scratch too.
    layer_decay: how much smaller the rate is with every layer further down, where the network is pre-trained.
    fine_tuning_crop: `crop_scale` there.
    probe_cases: labelled images for the linear probe, at most.
    draws: of labelled digits there.
    ablations: whether the tables of corruption kinds and of tasks are made, eight further trainings.
    """
    images = image_folder(data, size=size) if isinstance(data, str) else data
    train, test = images.split((0.78, 0.22), run.seed)
    tune = sit_arms.FineTuning(fine_tuning, layer_decay, fine_tuning_crop)
    arms = sit_arms.Arms(run, train, test, vit, crop_scale, batch_size, training, tune, labels_per_class, probe_cases)

    def sit(version: Any = version, tasks: tuple[str, ...] = tasks, corrupt: Any = corrupt) -> SiT:
        network = arms.network(3 - version)
        options = {"corrupt": corrupt, "hidden": hidden, "total": arms.total(), "not_square": not_square}
        return SiT(network, version, tasks, lambda_rec, **options)

    ours, masked = sit(), mae(arms.network(1))
    history = arms.pretrain("sit", ours, 1 if set(tasks) <= {"rec", "rot"} else 2).history
    mae_history = arms.pretrain("mae", masked, 1).history
    if "rec" in ours.tasks:
        figure, repairs = sit_arms.repaired(arms, ours, corrupt)
        run.figure("reconstruction", figure)
        run.table("repair of test images", repairs)
        early, late = (fmean(entry["rec"] for entry in part) for part in (history[15:25], history[-20:]))
        run.measure("reconstruction", ours=late, baseline=early, value=100 * (1 - late / early))
    else:
        run.unmeasured("reconstruction", why="the tasks do not contain 'rec'")
    run.figure("attention", sit_arms.attention_figure(arms, ours.backbone))
    run.figure("losses", loss_curves({"SiT": history, "MAE": mae_history}))

    if train.labels is None:
        for name in ("linear_probe", "fine_tuning", "against_mae", "against_cnn"):
            run.unmeasured(name, why="the images have no labels: put them in one folder a class")
    else:
        vits = {"SiT": ours.backbone, "MAE": masked.backbone, "scratch": arms.network(3 - version)}
        rows = sit_arms.comparison(arms, vits)
        run.table("test accuracy in %", list(rows.values()))
        others = {"linear_probe": "scratch", "fine_tuning": "scratch", "against_mae": "MAE", "against_cnn": "CNN"}
        for claim, name in others.items():
            column = "linear probe" if claim == "linear_probe" else "fine-tuned"
            score, other = rows["SiT"][column], rows[name][column]
            run.measure(claim, ours=score, baseline=other, value=score - other)
        if ablations:
            by_kind, by_task = sit_arms.ablation_rows(arms, sit)
            run.table("corruption kinds", by_kind)
            run.table("tasks", by_task)

    if isinstance(data, str):
        run.unmeasured("digits", why="set on the digits of scikit-learn; this run is on other images")
    else:
        gains = sit_arms.digit_gains(run, training, tune, draws, corrupt, hidden)
        run.measure("digits", value=fmean(gains))
        run.table("8x8 digits", [{"draw": draw, "gain in points": gain} for draw, gain in enumerate(gains)])
    if run.device.type == "cuda":
        first, last = sit_arms.gpu_loss_ratio(run)
        run.measure("gpu_bf16", ours=last, baseline=first, value=last / first)
    else:
        run.unmeasured("gpu_bf16", why="no GPU")
