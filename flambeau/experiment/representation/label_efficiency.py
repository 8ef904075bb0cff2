"""How good a pre-trained encoder is with few labels: fine-tuning on nested parts of a set, patients kept apart."""

from __future__ import annotations

import copy
import statistics
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from flambeau.data import ImageSet, derive_seed
from flambeau.data.subsets import check_disjoint_groups, nested_fractions
from flambeau.experiment.representation.evaluation import accuracy, auc, bootstrap_interval, features
from flambeau.training.fine_tune import fine_tune
from flambeau.training.progress import Progress
from flambeau.training.self_supervised import PooledFeatures, feature_dim
from flambeau.training.trainer import Trainer

Encoder = nn.Module | Callable[[], nn.Module]
Row = dict[str, Any]


@dataclass(frozen=True)
class Splits:
    """Images to train on, to choose by and to test with. Raises ValueError as :func:`check_splits`."""

    train: ImageSet
    test: ImageSet
    validation: ImageSet | None = None

    def __post_init__(self) -> None:
        check_splits(**{name: part for name, part in vars(self).items() if part is not None})


def label_efficiency(
    encoders: Mapping[str, Encoder],
    dataset: ImageSet | Splits,
    fractions: Sequence[float] = (0.1, 0.25, 0.5, 1.0),
    seeds: int = 5,
    *,
    trainer: Trainer = Trainer(epochs=70, optimizer=partial(torch.optim.Adam, lr=1e-4, weight_decay=5e-4)),
    batch_size: int = 64,
    transform: Callable[[Tensor, torch.Generator], Tensor] | None = None,
    frozen: float = 1 / 7,
    pool: Literal["mean", "max"] = "max",
    repeats: int = 1000,
    folder: Path | str | None = None,
    progress: Progress | None = None,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> list[Row]:
    """Fine-tune every encoder on stratified nested parts of the labels and test all of them on the same images.

    For each of `seeds` other parts are drawn; all encoders get the same parts, the same head and the same order. The
    head is a linear layer on normalised features (as He et al. 2022, arXiv 2111.06377, appendix A.1, probe theirs). The
    encoder is fixed for the first share `frozen` of the steps, then opened (10 of 70 epochs in Wolf et al. 2023, arXiv
    2308.06534, section 3, whose trainer is the default here). A trainer with ``select`` chooses by the accuracy on the
    validation part.

    Args:
        encoders: by name: a network, which is copied each time, or a function that builds one, with random weights
            from the seed. See ``pooled_features`` for what a network may return.
        dataset: a set, divided into 60 % to train on, 20 % validation and 20 % test (none of its groups is divided),
            or its :class:`Splits`.
        fractions: shares of the training part.
        pool: how feature maps become a vector.
        repeats: samples of the bootstrap interval; 0 for none.

    Returns:
        A row for each encoder, fraction and seed: ``method``, ``fraction``, ``labels`` (images), ``seed``, ``AUC`` (one
        versus rest, mean of the classes), ``low``, ``high`` (95 % of the bootstrap over test images) and ``accuracy``.
        ``pandas.DataFrame(rows)`` makes a table of them.

    Raises:
        ValueError: a set without labels, a class that a part lacks, patients in two parts, a fraction outside (0, 1].
    """
    if not encoders or seeds < 1 or not fractions:
        raise ValueError(f"encoders, fractions and seeds must not be empty, got {list(encoders)}, {fractions}, {seeds}")
    if not 0 <= frozen < 1:
        raise ValueError(f"frozen must lie in [0, 1), the share of the steps, got {frozen}")
    splits = dataset if isinstance(dataset, Splits) else split(dataset, seed)
    train, test = splits.train, splits.test
    assert train.labels is not None and test.labels is not None
    shape, classes = tuple(train.images.shape[1:]), int(test.labels.max()) + 1
    rows: list[Row] = []
    for number in range(seeds):
        own_seed = derive_seed(seed, "label efficiency", number) % 2**31
        parts = nested_fractions(train.labels, sorted(fractions), own_seed, groups=train.groups)
        for fraction, part in zip(sorted(fractions), parts):
            chosen = train[part]
            for name, encoder in encoders.items():
                torch.manual_seed(own_seed)
                backbone = copy.deepcopy(encoder) if isinstance(encoder, nn.Module) else encoder()  # type: ignore[misc]
                torch.manual_seed(own_seed + 1)  # heads are equal, however much randomness the encoder took
                dim = feature_dim(backbone, shape)
                # Features of different methods differ in scale; normalised, one learning rate suits all heads.
                head = nn.Sequential(nn.BatchNorm1d(dim, affine=False), nn.Linear(dim, classes))
                network = nn.Sequential(OrderedDict(backbone=PooledFeatures(backbone, pool), head=head)).to(device)
                batches = range(len(chosen) // min(batch_size, len(chosen)))  # as many as an epoch of fine_tune has
                held = int(frozen * trainer.total(batches))  # type: ignore[arg-type]
                fine_tune(
                    network,
                    chosen,
                    trainer=trainer,
                    batch_size=batch_size,
                    transform=transform,
                    frozen="backbone" if held else None,
                    frozen_steps=held,
                    evaluate=None if trainer.select is None else partial(_validate, splits.validation),
                    folder=None if folder is None else Path(folder) / f"{name}_{fraction:g}_{number}",
                    progress=progress,
                    seed=own_seed,
                )
                found = features(network, test.images).softmax(1).numpy()
                interval = (
                    bootstrap_interval(auc, found, test.labels, repeats=repeats, seed=own_seed)
                    if repeats
                    else (float("nan"),) * 2
                )
                rows.append(
                    {"method": name, "fraction": fraction, "labels": len(chosen), "seed": number}
                    | {"AUC": auc(found, test.labels), "low": interval[0], "high": interval[1]}
                    | {"accuracy": accuracy(found, test.labels)}
                )
    return rows


def split(dataset: ImageSet, seed: int = 0) -> Splits:
    """60 % to train on, 20 % validation, 20 % test, with whole groups."""
    if dataset.labels is None:
        raise ValueError("dataset has no labels")
    train, validation, test = dataset.split((0.6, 0.2, 0.2), seed)
    return Splits(train, test, validation)


def check_splits(**parts: ImageSet) -> None:
    """Raises ValueError for a part without labels or without a class, and for parts that share a group (a patient)."""
    present = {}
    for name, part in parts.items():
        if part.labels is None:
            raise ValueError(f"{name} has no labels")
        present[name] = set(part.labels.tolist())
    named = next(iter(parts.values())).classes
    every = set(range(max(max(found) for found in present.values()) + 1 if named is None else len(named)))
    for name, found in present.items():
        if found != every:
            missing = [str(label) if named is None else named[label] for label in sorted(every - found)]
            raise ValueError(f"{name} lacks the class {', '.join(missing)}")
    groups = {name: part.groups for name, part in parts.items() if part.groups is not None}
    if len(groups) > 1:
        check_disjoint_groups(**groups)


def summary(rows: Sequence[Row]) -> list[Row]:
    """A row for each method and fraction: means over the seeds of AUC, its interval and accuracy, and AUC's spread."""
    found = []
    for method, fraction in dict.fromkeys((row["method"], row["fraction"]) for row in rows):
        own = [row for row in rows if (row["method"], row["fraction"]) == (method, fraction)]
        means = {name: statistics.fmean(row[name] for row in own) for name in ("AUC", "low", "high", "accuracy")}
        spread = statistics.stdev(row["AUC"] for row in own) if len(own) > 1 else 0.0
        labels = round(statistics.fmean(row["labels"] for row in own))
        found.append({"method": method, "labels": labels, "fraction": fraction, **means, "AUC std": spread})
    return found


def robustness(rows: Sequence[Row]) -> dict[str, float]:
    """AUC lost from the largest to the smallest fraction, by method; smaller is more robust."""
    lost = {}
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in summary(rows) if row["method"] == method]
        by_size = sorted(own, key=lambda row: row["fraction"])
        lost[method] = by_size[-1]["AUC"] - by_size[0]["AUC"]
    return lost


def learning_curves(rows: Sequence[Row]) -> Any:
    """A figure: AUC with its interval against the number of labels, a line for each method."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4))
    axes = figure.subplots()
    table = summary(rows)
    for method in dict.fromkeys(row["method"] for row in table):
        own = [row for row in table if row["method"] == method]
        labels, means = [row["labels"] for row in own], [row["AUC"] for row in own]
        below = [max(0.0, row["AUC"] - row["low"]) for row in own]
        above = [max(0.0, row["high"] - row["AUC"]) for row in own]
        axes.errorbar(labels, means, (below, above), marker="o", capsize=3, label=method)
    axes.set(xscale="log", xlabel="labelled images", ylabel="AUC, one versus rest (95 % bootstrap)")
    counts = sorted({row["labels"] for row in table})
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.minorticks_off()
    axes.legend()
    return figure


def _validate(validation: ImageSet | None, network: nn.Module) -> dict[str, float]:
    if validation is None:
        raise ValueError("trainer selects by the validation part, and the splits have none")
    assert validation.labels is not None
    return {"accuracy": accuracy(features(network, validation.images).numpy(), validation.labels)}
