"""Efficient ConvBN blocks: fine-tuning with frozen batch statistics at the cost of a fused network."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from flambeau.data import ImageSet, derive_generator, faces, image_folder, photos
from flambeau.data.images.image_set import TEXTURES
from flambeau.deployment.rewriting import explain_convbn, rescale_channels
from flambeau.experiment import Claim, experiment
from flambeau.experiment.conv_bn import finetuning
from flambeau.experiment.conv_bn.finetuning import DIVERGED, MODES
from flambeau.experiment.conv_bn.gpu import measure_resnet50
from flambeau.models.vision import ResNet
from flambeau.symbolic import symbolize
from flambeau.training import Trainer, WarmupCosine

# fmt: off
CLAIMS = [
    Claim("same_losses", "largest difference of the training losses of tune and eval mode in the first 50 steps",
          at_most=1e-3),
    Claim("same_accuracy", "test accuracy after fine-tuning, difference of tune and eval mode", unit="points",
          paper="none in detection (COCO, 12 architectures)", at_most=0.5),
    Claim("step_time", "forward and backward pass of 64 images in tune mode, over that in eval mode", unit="x",
          at_most=0.85),
    Claim("saved_bytes", "bytes kept for the backward pass in tune mode, over those in eval mode", unit="x",
          paper="2.88 of 5.18 GB (ResNet-50, batch 64, PyTorch pull request 108757)", at_most=0.62),
    Claim("rescaled_tune", "same function with rescaled channels, at the learning rate best for eval mode: final loss "
          "of tune mode, over that of eval mode", unit="x", at_most=1.05),
    Claim("rescaled_deploy", "the same in deploy mode: final loss over that of eval mode (1000: not finite)", unit="x",
          paper="training diverges or is worse", at_least=2.0),
    Claim("same_attack", "20 steps of PGD in float64: largest difference of the images of tune and eval mode",
          paper="same success", at_most=1e-4),
    Claim("attack_time", "20 steps of PGD in tune mode, over those in eval mode", unit="x", at_most=0.9),
    Claim("gpu_memory", "ResNet-50, batch 64, 224 pixels, float32: peak memory of a step in tune mode, over eval mode",
          unit="x", paper="0.56 with torch.compile", at_most=0.65, needs="gpu"),
    Claim("gpu_memory_bf16", "the same under bfloat16 autocast", unit="x", at_most=0.65, needs="gpu"),
    Claim("gpu_time", "ResNet-50, batch 64, 224 pixels, float32: time of a step in tune mode, over eval mode",
          unit="x", at_most=0.9, needs="gpu"),
    Claim("gpu_time_bf16", "the same under bfloat16 autocast", unit="x", at_most=0.9, needs="gpu"),
    Claim("detection", "mAP of detectors fine-tuned on COCO, against eval mode", paper="unchanged"),
]
PRESETS = {
    "smoke": {
        "model.blocks": (1, 1), "model.widths": (8, 16), "source.count": 70, "pretraining.steps": 3,
        "training.steps": 4, "rates": (0.003, 0.03), "batch_size": 8, "timed": 8, "repeats": 1,
    },
    "paper": {
        "model": "hf:microsoft/resnet-50", "data": "CUB_200_2011/images", "size": 224, "batch_size": 64,
        "training.steps": 2000,
    },
}
# fmt: on


@experiment("convbn_tune", claims=CLAIMS, presets=PRESETS)
def run(
    run: Any,
    *,
    data: ImageSet | str = symbolize(faces)(),
    size: int = 24,
    source: ImageSet = symbolize(photos)(crop=24, count=1400, names=TEXTURES),
    model: Callable[..., Any] | str = symbolize(ResNet).partial(blocks=(2, 2, 2), widths=(16, 32, 64), stem="small"),
    pretraining: Trainer = symbolize(Trainer)(
        steps=150,
        optimizer=symbolize(torch.optim.SGD).partial(lr=0.1, momentum=0.9),
        schedule=symbolize(WarmupCosine)(),
    ),
    training: Trainer = symbolize(Trainer)(steps=80, optimizer=symbolize(torch.optim.SGD).partial(momentum=0.9)),
    rates: tuple[float, ...] = (0.001, 0.003, 0.01, 0.03, 0.1),
    batch_size: int = 16,
    timed: int = 64,
    repeats: int = 5,
) -> None:
    """Fine-tune a pretrained network in train, eval, tune and deploy mode, and attack it.

    data: images to fine-tune on, or a folder of class folders.
    size: height and width in pixels they are brought to.
    source: images the network is pretrained on; not used with a model of transformers.
    model: the network, or "hf:FOLDER" or "hf:NAME", an image classifier of transformers.
    pretraining: the loop on `source`.
    training: the loop on `data`; its optimiser gets the learning rates.
    rates: learning rates tried in each mode.
    batch_size: images a step.
    timed: images of the timed step, and of the attack.
    repeats: times that each timed step is run.
    """
    images = image_folder(data, size=size) if isinstance(data, str) else data.resize(size)
    task = finetuning.pretrained(model, source, images, pretraining, batch_size, run)
    table = explain_convbn(task.model, task.train_x[:timed])
    run.table("pairs", table.rows)
    run.note(
        f"{len(table.rows)} pairs of a convolution and a normalisation, {len(table.skipped)} other normalisations."
    )

    costs = finetuning.step_costs(task, timed, repeats)
    (eval_time, eval_bytes), (tune_time, tune_bytes) = costs["eval"], costs["tune"]
    run.measure("step_time", ours=tune_time, baseline=eval_time, value=tune_time / eval_time)
    run.measure("saved_bytes", ours=tune_bytes, baseline=eval_bytes, value=tune_bytes / eval_bytes)
    run.table(
        "a step", [{"mode": mode, "ms": 1e3 * time, "MB kept": kept / 1e6} for mode, (time, kept) in costs.items()]
    )
    times, gap, left = finetuning.attack(task, timed, 20, max(1, repeats // 2), run.seed)
    run.measure("same_attack", value=gap)
    run.measure("attack_time", ours=times["tune"], baseline=times["eval"], value=times["tune"] / times["eval"])
    run.note(f"PGD leaves an accuracy of {left:.0%} to the network before it is fine-tuned.")

    fixed: dict[str, Any] = dict(trainer=training, batch_size=batch_size, run=run)
    results = {
        (mode, rate): finetuning.fine_tune(task, mode, rate, name="plain", **fixed) for mode in MODES for rate in rates
    }
    rate = finetuning.best_rate(results, "eval")
    ours, baseline = results["tune", rate], results["eval", rate]
    gap = max(abs(a - b) for a, b in zip(ours.losses[:50], baseline.losses[:50]))
    run.measure("same_losses", ours=ours.loss, baseline=baseline.loss, value=gap)
    difference = 100 * abs(ours.accuracy - baseline.accuracy)
    run.measure("same_accuracy", ours=ours.accuracy, baseline=baseline.accuracy, value=difference)
    run.table("fine-tuning", finetuning.rows(results))
    curves = {mode: results[mode, finetuning.best_rate(results, mode)].losses for mode in MODES}

    rescaled = replace(task, model=copy.deepcopy(task.model))
    noise = derive_generator(run.seed, "rescaling")
    rescale_channels(rescaled.model, 1, 30, generator=noise, example_inputs=task.train_x[:2])
    others = {("eval", r): finetuning.fine_tune(rescaled, "eval", r, name="rescaled", **fixed) for r in rates}
    rate = finetuning.best_rate(others, "eval")
    for mode in ("tune", "deploy"):
        others[mode, rate] = finetuning.fine_tune(rescaled, mode, rate, name="rescaled", **fixed)
        ours, baseline = others[mode, rate], others["eval", rate]
        ratio = ours.loss / baseline.loss if math.isfinite(ours.loss) else DIVERGED
        run.measure(f"rescaled_{mode}", ours=ours.loss, baseline=baseline.loss, value=ratio)
    run.table("fine-tuning with rescaled channels", finetuning.rows(others))
    shown = {mode: others[mode, rate].losses for mode in ("eval", "tune", "deploy")}
    titles = ("pretrained, each mode at its best rate", f"channels rescaled, rate {rate:g} (best for eval)")
    run.figure("losses", finetuning.losses_figure(dict(zip(titles, (curves, shown)))))
    measure_resnet50(run)
    run.unmeasured("detection", why="needs COCO and the weights of the detectors")
