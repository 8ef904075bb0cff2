"""Distillation methods on digits, each as one of the ready configs says."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from statistics import mean, stdev
from typing import Any

import torch
from torch import nn

from flambeau.data import ImageSet
from flambeau.data.images.augmented_digits import augmented_digits
from flambeau.experiment.distillation.own import config_path
from flambeau.models.vision import ConvNet
from flambeau.training.distillation.box import DistillBox
from flambeau.training.distillation.config import load_config
from flambeau.training.distillation.stages import stage_sections
from flambeau.training.trainer import Fit

ROWS = {
    "ce": "CE", "kd_t1": "KD (T=1)", "kd_t4": "KD (T=4)", "at": "AT", "fitnet": "FitNet",
    "fitnet_two_stages": "FitNet, two stages",
}  # fmt: skip
FEW = {"few_ce": "CE", "few_kd": "KD (T=4)"}


def train_row(
    run: Any, name: str, teacher: nn.Module | None, repetition: int = 0, *, views: int = 4, steps: int | None = None
) -> tuple[nn.Module, list[Fit]]:
    """Train the student of ``configs/digits/NAME.yaml`` in the run's folder; returns it and what its stages did.

    Args:
        teacher: the trained one; None for the rows without.
        repetition: another start and order of the data, on the same images.
        views: disturbed versions of each digit.
        steps: of each stage at most, for a quick look.
    """
    config = copy.deepcopy(load_config(config_path(f"flambeau:digits/{name}.yaml")))
    for section in stage_sections(config["train"]):
        if "cache_output" in section["train_data_loader"]:
            section["train_data_loader"]["cache_output"] = str(run.folder / "train" / "teacher_outputs")
    if steps is not None:
        for section in [value for key, value in config["train"].items() if key.startswith("stage")] or [
            config["train"]
        ]:
            section["num_steps"] = steps
    arguments = {key: tag.arguments["init"]["kwargs"] for key, tag in config["datasets"].items()}
    datasets = {key: augmented_digits(**{**kwargs, "views": views}, seed=run.seed) for key, kwargs in arguments.items()}
    model = config["models"].get("student_model") or config["models"]["model"]
    torch.manual_seed(1000 * run.seed + repetition)
    student = ConvNet(**model["kwargs"])
    box = DistillBox(teacher, student, datasets, config, run.device, seed=1000 * run.seed + repetition)
    folder = run.folder / "train" / f"{name}_{repetition}"
    return box.student, box.run(folder=folder, progress=run.progress)


def compare(
    run: Any, rows: Mapping[str, str], teacher: nn.Module, *, repetitions: int, views: int, steps: int | None
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Test accuracies of every repetition of `rows` (config to name), and the losses of the first, by name."""
    test = augmented_digits("test", seed=run.seed)
    found: dict[str, list[float]] = {name: [] for name in rows.values()}
    curves = {}
    for key, name in rows.items():
        for repetition in range(repetitions):
            student, fits = train_row(run, key, None if name == "CE" else teacher, repetition, views=views, steps=steps)
            found[name].append(accuracy(student, test))
            if repetition == 0:
                curves[name] = [entry["loss"] for fit in fits for entry in fit.history]
    return found, curves


def table(labels: str, accuracies: Mapping[str, list[float]]) -> list[dict[str, Any]]:
    """Mean and standard deviation of each method's accuracies, in percent."""
    rows = []
    for name, values in accuracies.items():
        spread = round(100 * stdev(values), 2) if len(values) > 1 else None
        shown = {"labels": labels, "method": name, "mean %": round(100 * mean(values), 2), "sd": spread}
        rows.append({**shown, "students": len(values)})
    return rows


def new_student() -> ConvNet:
    """The student of the configs, about 15 thousand parameters."""
    models = load_config(config_path("flambeau:digits/kd_t4.yaml"))["models"]
    return ConvNet(**models["student_model"]["kwargs"])


def accuracy(model: nn.Module, images: ImageSet, batch: int = 500) -> float:
    """Share of the images whose class the model finds."""
    assert images.labels is not None
    device = next(model.parameters()).device
    model.eval()
    with torch.no_grad():
        found = [model(part.to(device)).argmax(1).cpu() for part in images.images.split(batch)]
    return float((torch.cat(found) == images.labels).double().mean())
