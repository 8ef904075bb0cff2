"""Pre-training on unlabelled medical slices, masked or contrastive, and what it is worth with few labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from torch import nn

from flambeau.data import ImageSet
from flambeau.data.images.near_duplicates import without_near_duplicates
from flambeau.data.medical.head_phantoms import head_phantoms
from flambeau.data.medical.images import medical_images
from flambeau.experiment import Claim, experiment
from flambeau.experiment.representation import label_efficiency as protocol
from flambeau.experiment.representation.medical_pretraining import (
    filled_in,
    hidden_error,
    masked_views,
    measure_gains,
    micrograph_error,
    pretrained,
)
from flambeau.experiment.representation.spark_gpu import step_ratio
from flambeau.models.vision import ConvStages, resnet50
from flambeau.symbolic import symbolize
from flambeau.training import Trainer, WarmupCosine
from flambeau.training.optimizers import LAMB, LARS
from flambeau.training.self_supervised import BYOL, MoCoV2, SimCLR, SparK, SwAV
from flambeau.training.self_supervised.recipe import Recipe

# fmt: off
CLAIMS = [
    Claim("reconstruction", "SparK: squared error of hidden cells of test images over that of each cell's mean",
          unit="x", at_most=0.7),
    Claim("few_labels", "accuracy of SparK minus that of training from scratch, at the worst number of labels",
          unit="points", at_least=-2.0),
    Claim("fewest_labels", "accuracy of SparK minus that of training from scratch, at the fewest labels",
          paper="SparK loses least when labels get fewer", unit="points"),
    Claim("contrastive", "AUC of SparK minus that of the best contrastive method, mean over the numbers of labels",
          unit="points"),
    Claim("robustness", "AUC lost from the most labels to the fewest: scratch minus SparK",
          paper="SparK is the most robust", unit="points"),
    Claim("gate", "head phantoms: accuracy from scratch with all labels, without which the task says nothing",
          unit="of images", at_least=0.85),
    Claim("micrographs", "stained tissue, cells, retina: squared error of hidden cells over that of each cell's mean",
          unit="x", at_most=0.8),
    Claim("gpu_step", "ResNet-50, 224 x 224, bf16: a step of SparK's encoder over one of the dense network",
          unit="x", at_most=1.35, needs="gpu"),
]
LAMB_, COSINE = symbolize(LAMB), symbolize(WarmupCosine)(warmup=0.05)
ADAM, SGD = symbolize(torch.optim.Adam), symbolize(torch.optim.SGD)
EPOCHS = 400  # of pre-training at full size; the paper's own are 800 and, for SparK, 1600
PRESETS = {
    "smoke": {
        "counts": (64, 160), "fractions": (0.2, 0.5), "repeats": 5, "fine_tuning.steps": 2, "gate.steps": 2,
        "spark.training.steps": 2, "simclr.training.steps": 2, "micrographs.steps": 2,
    },
    "paper": {
        "unlabelled": "lidc_png/slices.csv", "labelled": "organsmnist.npz", "size": 224,
        "encoder": symbolize(resnet50).partial(), "pool": "mean",
        "methods": ("spark", "moco", "byol", "swav", "scratch"), "fractions": (0.1, 0.25, 0.5, 1.0), "draws": 5,
        "fine_tuning": symbolize(Trainer)(epochs=70, optimizer=ADAM.partial(lr=1e-4, weight_decay=5e-4), select="max"),
        "frozen": 0.143, "fine_tuning_batch": 64, "repeats": 1000,
        "spark": symbolize(Recipe)(
            symbolize(SparK).partial(), batch_size=32, training=symbolize(Trainer)(
                epochs=EPOCHS, optimizer=LAMB_.partial(lr=5e-5, weight_decay=0.04), schedule=COSINE, clip=5.0,
                precision="bf16")),
        "moco": symbolize(Recipe)(
            symbolize(MoCoV2).partial(temperature=0.07), batch_size=128, training=symbolize(Trainer)(
                epochs=EPOCHS, optimizer=SGD.partial(lr=0.03, momentum=0.9, weight_decay=1e-4), schedule=COSINE,
                precision="bf16")),
        "byol": symbolize(Recipe)(
            symbolize(BYOL).partial(), batch_size=64, training=symbolize(Trainer)(
                epochs=EPOCHS, optimizer=ADAM.partial(lr=1e-3, weight_decay=1.5e-6), schedule=COSINE,
                precision="bf16")),
        "swav": symbolize(Recipe)(
            symbolize(SwAV).partial(), batch_size=128, training=symbolize(Trainer)(
                epochs=EPOCHS, optimizer=symbolize(LARS).partial(lr=0.15), schedule=COSINE, precision="bf16")),
    },
}
# fmt: on
SHORT = symbolize(Trainer)(steps=50, optimizer=LAMB_.partial(lr=2e-2, weight_decay=0.04), schedule=COSINE)


@experiment("medical_ssl", claims=CLAIMS, presets=PRESETS)
def run(
    run: Any,
    *,
    unlabelled: ImageSet | str | None = None,
    labelled: ImageSet | str | None = None,
    size: int = 48,
    gray: bool = True,
    phantoms: Callable[..., ImageSet] = symbolize(head_phantoms).partial(slices=2),
    counts: tuple[int, int] = (4000, 2000),
    keep_below: float | None = None,
    methods: tuple[str, ...] = ("spark", "simclr", "scratch"),
    encoder: Callable[..., nn.Module] = symbolize(ConvStages).partial(widths=(24, 48, 96)),
    pool: Literal["mean", "max"] = "max",
    spark: Recipe = symbolize(Recipe)(
        symbolize(SparK).partial(mask_ratio=0.6, decoder_width=32),
        symbolize(Trainer)(steps=300, optimizer=LAMB_.partial(lr=2e-2, weight_decay=0.04), schedule=COSINE, clip=5.0),
        32,
    ),
    simclr: Recipe = symbolize(Recipe)(symbolize(SimCLR).partial(dim=64, temperature=0.2), SHORT, 64),
    moco: Recipe = symbolize(Recipe)(symbolize(MoCoV2).partial(dim=64, queue=1024, momentum=0.99), SHORT, 64),
    byol: Recipe = symbolize(Recipe)(symbolize(BYOL).partial(dim=64, hidden=256, momentum=0.99), SHORT, 64),
    swav: Recipe = symbolize(Recipe)(
        symbolize(SwAV).partial(dim=64, hidden=128, prototypes=32, frozen_steps=10), SHORT, 32
    ),
    fractions: tuple[float, ...] = (0.0267, 0.0833, 0.3333),
    draws: int = 1,
    fine_tuning: Trainer = symbolize(Trainer)(
        steps=100, optimizer=LAMB_.partial(lr=0.04, weight_decay=0.05), schedule=COSINE
    ),
    fine_tuning_batch: int = 32,
    frozen: float = 0.0,
    repeats: int = 100,
    gate: Trainer = symbolize(Trainer)(steps=160, optimizer=LAMB_.partial(lr=0.04, weight_decay=0.05), schedule=COSINE),
    micrographs: Trainer = symbolize(Trainer)(
        steps=300, optimizer=LAMB_.partial(lr=0.04, weight_decay=0.04), schedule=COSINE, clip=5.0
    ),
) -> None:
    """Pre-train one network without labels by several methods, then fine-tune it with few labels and compare AUCs.

    unlabelled: images to pre-train on: a folder, a CSV list (image[,patient]) or a MedMNIST file; without one, made-up
        slices of heads.
    labelled: a folder of class folders, a CSV list (image,label[,patient]) or a MedMNIST file.
    size: side in pixels to which images are brought; a multiple of the encoder's stride.
    gray: read one channel instead of three.
    phantoms: the made-up slices.
    counts: of them, unlabelled and labelled.
    keep_below: leave out slices of a patient whose difference hash has at least this share of its bits in common with
        that of a kept one, before pre-training.
    methods: of spark, simclr, moco, byol, swav, scratch.
    encoder: the network.
    pool: how its last feature map becomes a vector for the head.
    spark: method, training and batch size.
    simclr: likewise.
    moco: likewise.
    byol: likewise.
    swav: likewise, with four smaller views beside the two.
    fractions: shares of the labels of the training part; by default 8, 25 and 100 images a class of the phantoms.
    draws: of each share.
    fine_tuning: of every network.
    fine_tuning_batch: images a step of it.
    frozen: share of the steps in which only the head is trained.
    repeats: samples of the bootstrap intervals.
    gate: training from scratch with all labels.
    micrographs: training of SparK on photographs of tissue, cells and a retina.
    """
    made_up = unlabelled is None and labelled is None
    if (unlabelled is None) != (labelled is None):
        raise ValueError("unlabelled and labelled go together: give both, or neither for made-up slices")
    read = partial(medical_images, size=size, gray=gray)
    plain = phantoms(counts[0], size, seed=2 * run.seed + 1) if unlabelled is None else unlabelled
    cases = phantoms(counts[1], size, seed=2 * run.seed) if labelled is None else labelled
    plain = read(plain, labelled=False) if isinstance(plain, str) else plain
    cases = read(cases) if isinstance(cases, str) else cases
    if keep_below is not None:
        before, plain = len(plain), without_near_duplicates(plain, threshold=keep_below)
        run.note(f"{before - len(plain)} of {before} unlabelled images were near-duplicates and left out.")
    splits = (
        protocol.split(cases, run.seed) if fine_tuning.select else protocol.Splits(*cases.split((0.6, 0.4), run.seed))
    )
    recipes = {"spark": spark, "simclr": simclr, "moco": moco, "byol": byol, "swav": swav}
    builders, trained = pretrained(run, methods, recipes, encoder, plain.images, pool)

    tune = partial(
        protocol.label_efficiency, dataset=splits, batch_size=fine_tuning_batch, transform=masked_views((size, size)),
        pool=pool, progress=run.progress, device=run.device, seed=run.seed,
    )  # fmt: skip
    rows = tune(
        builders, fractions=fractions, seeds=draws, trainer=fine_tuning, frozen=frozen, repeats=repeats,
        folder=run.folder / "train" / "labels",
    )  # fmt: skip
    run.figure("labels", protocol.learning_curves(rows))
    run.table("labels", protocol.summary(rows))
    lost = protocol.robustness(rows)
    run.table(
        "robustness", [{"method": name, "AUC lost from most to fewest labels": value} for name, value in lost.items()]
    )
    measure_gains(run, protocol.summary(rows), lost)

    if "spark" in trained:
        run.measure("reconstruction", value=hidden_error(trained["spark"], splits.test.images, run.seed))
        run.figure("filled_in", filled_in(trained["spark"], splits.test.images[:6], run.seed))
    else:
        run.unmeasured("reconstruction", why="methods do not contain spark")
    if made_up:
        scratch = {"scratch": partial(encoder, in_channels=plain.images.shape[1])}
        all_labels = tune(
            scratch, fractions=(1.0,), seeds=1, trainer=gate, frozen=0.0, repeats=0,
            folder=run.folder / "train" / "gate",
        )  # fmt: skip
        run.measure("gate", value=all_labels[0]["accuracy"])
        short = replace(spark, training=micrographs)
        run.measure("micrographs", value=micrograph_error(run, short, encoder, size, gray, pool))
    else:
        for name in ("gate", "micrographs"):
            run.unmeasured(name, why="it is about the images that come with flambeau")
    if run.device.type == "cuda":
        ours, dense = step_ratio(run.device)
        run.measure("gpu_step", ours=ours, baseline=dense, value=ours / dense)
