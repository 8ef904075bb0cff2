"""Comparison of click predictors on one split of a log, each trained by early stopping."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from flambeau.data import breast_cancer
from flambeau.data.clicks.encoded import ClickData, ClickRows
from flambeau.data.clicks.fields import Field, FieldSchema
from flambeau.data.clicks.planted import PlantedClicks, planted_clicks
from flambeau.data.seeding import derive_generator, derive_seed
from flambeau.experiment.clicks.figures import pairs_figure
from flambeau.experiment.clicks.metrics import click_metrics, relative_improvement
from flambeau.models import tabular
from flambeau.models.tabular import AutoInt
from flambeau.models.tabular.explanation import mean_attention, pair_importance, strongest_pairs
from flambeau.ops.bench import interleaved
from flambeau.training import Trainer
from flambeau.training.click_through import fit_clicks, negative_offset, predict_logits
from flambeau.training.estimators.autoint_classifier import AutoIntClassifier
from flambeau.training.progress import Progress


@dataclass(frozen=True)
class Contender:
    """A model to compare: built from the schema by ``model(schema)`` and trained by `trainer`."""

    model: Callable[[FieldSchema], nn.Module]
    trainer: Trainer


def contenders(
    model: Callable[..., AutoInt], training: Trainer, mlp: Sequence[int], baselines: str
) -> dict[str, Contender]:
    """AutoInt, AutoInt+ and the baselines, all stopped early, each at a learning rate that suits it.

    The rates are fixed multiples of AutoInt's. On planted records (seeds 10 and 12, four rates each) those of LR, FM,
    DeepFM and DNN came within 0.004 of their best validation AUC; the other baselines were not swept. Models without a
    perceptron learn more slowly and may take three times as many epochs; their steps are cheap.

    Args:
        model: AutoInt, ``model(schema)``.
        training: of AutoInt.
        mlp: widths of every perceptron.
        baselines: ``"few"`` or ``"all"`` of those in the AutoInt paper.
    """
    longer = None if training.epochs is None else 3 * training.epochs
    rate = getattr(training.optimizer, "keywords", {}).get("lr", 1e-3)

    def tuned(build: Any, factor: float, epochs: int | None = training.epochs, **options: Any) -> Contender:
        adam = partial(torch.optim.Adam, lr=factor * rate)
        return Contender(partial(build, **options), replace(training, optimizer=adam, epochs=epochs))

    found = {
        "LR": tuned(tabular.LogisticRegression, 1.0, longer),
        "FM": tuned(tabular.FactorizationMachine, 0.5, longer),
        "DeepFM": tuned(tabular.DeepFM, 0.5, mlp=mlp),
        "DNN": tuned(tabular.DNN, 0.5, mlp=mlp),
    }
    if baselines == "all":
        found |= {
            "AFM": tuned(tabular.AFM, 1.0, longer),
            "HOFM": tuned(tabular.HOFM, 0.5, longer),
            "NFM": tuned(tabular.NFM, 0.5, longer),
            "CrossNet": tuned(tabular.DCN, 0.5, longer, mlp=None),
            "DCN": tuned(tabular.DCN, 0.5, mlp=mlp),
            "CIN": tuned(tabular.XDeepFM, 0.5, mlp=None),
            "xDeepFM": tuned(tabular.XDeepFM, 0.5, mlp=mlp),
            "DeepCrossing": tuned(tabular.DeepCrossing, 0.5),
        }
    return found | {"AutoInt": Contender(model, training), "AutoInt+": tuned(model, 0.5, mlp=mlp)}


def patient(models: Mapping[str, Contender]) -> dict[str, Contender]:
    """The contenders at constant rates, and perceptrons with twice the epochs and patience: to leave a plateau."""
    found = {name: Contender(one.model, replace(one.trainer, schedule=None)) for name, one in models.items()}
    for name in ("DNN", "AutoInt+"):
        trainer = found[name].trainer
        epochs, patience = (None if count is None else 2 * count for count in (trainer.epochs, trainer.patience))
        found[name] = Contender(found[name].model, replace(trainer, epochs=epochs, patience=patience))
    return found


def compare_click_models(
    data: ClickData,
    contenders: Mapping[str, Contender],
    *,
    batch_size: int,
    keep_negatives: float = 1.0,
    repeats: int = 1,
    folder: Path,
    progress: Progress | None,
    device: torch.device,
    seed: int,
) -> tuple[dict[str, nn.Module], list[dict[str, Any]]]:
    """Train every contender on the same rows, stop by the same, and measure on the test part.

    Args:
        repeats: trainings of each, of other weights and orders; AUC is their mean, and the spread is told.

    Returns:
        The models of the first training, and a table with test AUC, its spread (largest minus smallest), RelaImpr over
        the first contender, log-loss, predicted over observed clicks, the step of the weights kept, parameters and CPU
        seconds.
    """
    models: dict[str, nn.Module] = {}
    rows: list[dict[str, Any]] = []
    for name, contender in contenders.items():
        found: list[dict[str, float]] = []
        for repeat in range(repeats):
            stream = derive_seed(seed, "training", repeat)
            torch.manual_seed(stream)
            model = contender.model(data.schema).to(device)
            started = time.process_time()
            fit = fit_clicks(
                model, data.train, data.validation, contender.trainer, batch_size=batch_size, seed=stream,
                keep_negatives=keep_negatives, folder=folder / f"{name} {repeat + 1}", progress=progress,
            )  # fmt: skip
            spent = time.process_time() - started
            logits = predict_logits(model, data.test.ids, data.test.values) + negative_offset(keep_negatives)
            step = fit.best["step"] if fit.best else fit.steps
            found.append(click_metrics(data.test.labels.numpy(), logits.numpy()) | {"step": step, "seconds": spent})
            models.setdefault(name, model)
        mean = {key: float(np.mean([one[key] for one in found])) for key in found[0]}
        areas = [one["auc"] for one in found]
        first = rows[0]["AUC"] if rows else mean["auc"]
        rows.append(
            {
                "model": name,
                "AUC": mean["auc"],
                "spread": max(areas) - min(areas),
                "RelaImpr %": relative_improvement(mean["auc"], first) if first != 0.5 else float("nan"),
                "log-loss": mean["log_loss"],
                "predicted / observed": mean["calibration"],
                "best step": mean["step"],
                "parameters": sum(parameter.numel() for parameter in models[name].parameters()),
                "CPU s": mean["seconds"],
            }
        )
    return models, rows


def planted_data(crosses: Any, rows: int, seed: int) -> tuple[ClickData, PlantedClicks, float]:
    """`rows` planted records to train on, a sixth of that to stop by, a third to test; and the best test AUC."""
    edges = [0, rows, rows + rows // 6, rows + rows // 6 + rows // 3]
    clicks = planted_clicks(edges[-1], crosses=crosses, seed=seed)
    schema = FieldSchema.fit(clicks.columns(slice(0, rows)), [Field(name) for name in clicks.columns()])
    ids, values = schema.encode(clicks.columns())
    parts = [ClickRows(ids[a:b], values[a:b], clicks.labels[a:b]) for a, b in zip(edges, edges[1:])]
    best = click_metrics(clicks.labels[edges[2] :].numpy(), clicks.logits[edges[2] :].numpy())["auc"]
    return ClickData(schema, *parts), clicks, best


def explain_pairs(run: Any, model: AutoInt, data: ClickData, planted: Collection[tuple[int, int]] = ()) -> Any:
    """Attention of the first layer and importance of pairs on test rows, with a figure of both."""
    ids, values = data.test.ids[:2048].to(run.device), data.test.values[:2048].to(run.device)
    attention = mean_attention(model, ids, values).cpu()
    generator = derive_generator(run.seed, "pairs")
    predict = partial(predict_logits, model)
    importance = pair_importance(predict, ids[:1024], values[:1024], data.schema.slots, generator=generator)
    shown = {"attention of the first layer": attention, "importance by permutation": importance}
    run.figure("pairs", pairs_figure(shown, [one.name for one in data.schema.fields], planted))
    return attention, importance


def pair_rows(attention: Tensor, importance: Tensor, names: Sequence[str], count: int = 10) -> list[dict[str, Any]]:
    """The pairs of fields of most importance, as rows of a table."""
    return [
        {
            "fields": f"{names[i]} x {names[j]}",
            "permutation importance": importance[i, j].item(),
            "attention": (attention[i, j] + attention[j, i]).item() / 2,
        }
        for i, j in strongest_pairs(importance, count)
    ]


def pairs_of_a_triple(matrix: Tensor, clicks: PlantedClicks, count: int = 6) -> int:
    """Pairs of the best found planted triple among the `count` strongest of the matrix; 3 is all of them."""
    found = set(strongest_pairs(matrix, count))
    return max(len(found & set(combinations(triple, 2))) for triple in clicks.triples)


def planted_pairs_first(matrix: Tensor, clicks: PlantedClicks) -> float:
    """Share of planted pairs among as many strongest of the matrix; 1 if they all come first."""
    return len(clicks.pairs & set(strongest_pairs(matrix, len(clicks.pairs)))) / len(clicks.pairs)


def binned_breast_cancer_auc(classifier: AutoIntClassifier, seed: int) -> float:
    """Test AUC of `classifier` on the breast cancer table, its 30 columns cut into tenths."""
    train, test = (part for part in breast_cancer().split((0.7, 0.3), seed))
    edges = np.quantile(train.features.numpy(), np.linspace(0, 1, 11)[1:-1], axis=0)

    def binned(features: Tensor) -> dict[str, Any]:
        columns = enumerate(train.names)
        return {name: np.searchsorted(edges[:, place], features[:, place].numpy()) for place, name in columns}

    classifier.set_params(categorical=train.names, random_state=seed)
    classifier.fit(binned(train.features), train.target.numpy())
    return click_metrics(test.target.numpy(), classifier.decision_function(binned(test.features)))["auc"]


def fused_attention_ratio(device: torch.device, batch: int = 4096, fields: int = 39) -> tuple[float, float]:
    """Seconds of a training step at Criteo's size, with fused attention and with the matrices written out."""
    names = [Field(f"C{place}") for place in range(fields)]
    schema = FieldSchema.fit({one.name: list(range(1000)) for one in names}, names)
    model = AutoInt(schema).to(device)
    ids = torch.stack([torch.randint(1000, (batch,)) + schema.first[one.name] + 2 for one in names], 1).to(device)
    values = torch.ones(batch, fields, device=device)

    def step(attend: Callable[[nn.Module, Tensor], Tensor]) -> None:
        x = model.embedding(ids, values)
        for layer in model.layers:
            x = attend(layer, x)
        model.output(x.flatten(1)).sum().backward()

    ways = {
        "fused": partial(step, lambda layer, x: layer(x)),
        "naive": partial(step, lambda layer, x: layer.with_attention(x)[0]),
    }
    seconds = interleaved(ways, synchronize=torch.cuda.synchronize if device.type == "cuda" else lambda: None)
    return seconds["fused"].wall, seconds["naive"].wall
