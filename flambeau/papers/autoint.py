"""AutoInt: feature interactions for click-through prediction, learned by self-attention over fields."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from flambeau.data.clicks.encoded import encode_log
from flambeau.data.clicks.logs import ClickLog, avazu, click_log, criteo, kdd2012, movielens
from flambeau.experiment import Claim, experiment
from flambeau.experiment.clicks import models as report
from flambeau.experiment.clicks.figures import ranking_figure
from flambeau.experiment.clicks.models import Contender, compare_click_models
from flambeau.models.tabular import AutoInt
from flambeau.models.tabular.explanation import ATTENTION_NOTE, agreement
from flambeau.symbolic import symbolize
from flambeau.training import OneCycle, Trainer
from flambeau.training.estimators import AutoIntClassifier

# fmt: off
CLAIMS = [
    Claim("fm", "AND crosses: test AUC minus that of a tuned factorisation machine", unit="AUC", at_least=0.02),
    Claim("lr", "AND crosses: test AUC minus that of a tuned logistic regression", unit="AUC", at_least=0.05),
    Claim("dnn", "AND crosses: test AUC minus that of a perceptron on the same embeddings", unit="AUC",
          at_least=-0.005),
    Claim("bayes", "AND crosses: test AUC minus that of the true probabilities", unit="AUC", at_least=-0.01),
    Claim("residual", "AND crosses: test AUC minus that without residual projections, trained alike",
          paper="lower without them in the ablation", unit="AUC", at_least=0.008),
    Claim("attention_triple", "pairs of one planted triple among the six strongest of the first layer's attention",
          unit="of 3", at_least=3),
    Claim("planted_first", "share of planted pairs among as many strongest by permutation", unit="of 7 pairs",
          at_least=1.0),
    Claim("agreement", "rank correlation of attention with permutation importance over pairs of fields"),
    Claim("xor", "XOR crosses, adversarial: test AUC minus that of the true probabilities", unit="AUC"),
    Claim("xor_plus", "XOR crosses, adversarial: the same for AutoInt+", unit="AUC"),
    Claim("breast_cancer", "test AUC on the breast cancer table cut into tenths"),
    Claim("own_lr", "own data: test AUC minus that of logistic regression", unit="AUC", at_least=0.0),
    Claim("own_dnn", "own data: test AUC minus that of a perceptron on the same embeddings", unit="AUC"),
    Claim("criteo", "Criteo: test AUC", paper="0.8088 (log of a run in the authors' repository)"),
    Claim("gpu_step", "training step at batch 4096 and 39 fields: attention written out, over fused attention",
          unit="x", at_least=1.5, needs="gpu"),
]
PRESETS: dict[str, dict[str, Any]] = {
    "smoke": {"rows": 1200, "training.steps": 4, "training.evaluate_every": 2, "model.width": 8, "model.layers": 1,
              "tables.epochs": 1},
    "paper": {
        "data": "criteo/train.txt", "layout": "criteo", "batch_size": 1024, "model.width": 64,
        "model.dropout": (0.0, 0.0, 0.5), "mlp": (400, 400), "baselines": "all", "repeats": 3,
        "training.epochs": 3, "training.schedule": None, "training.evaluate_every": 4500, "training.patience": 8,
        "training.optimizer": symbolize(torch.optim.Adam).partial(lr=1e-3),
    },
}
# fmt: on
ELSEWHERE = {"gpu_step", "criteo"}
PLANTED = [claim.name for claim in CLAIMS if not claim.name.startswith("own_") and claim.name not in ELSEWHERE]
LAYOUTS: dict[str, Callable[[str], ClickLog]] = dict(criteo=criteo, avazu=avazu, kdd2012=kdd2012, movielens=movielens)


@experiment("autoint", claims=CLAIMS, presets=PRESETS)
def run(
    run: Any,
    *,
    data: str | None = None,
    target: str = "clicked",
    positive: str | None = None,
    categorical: str = "",
    sets: str = "",
    min_count: int = 1,
    layout: Literal["table", "criteo", "avazu", "kdd2012", "movielens"] = "table",
    rows: int = 60_000,
    model: Callable[..., AutoInt] = symbolize(AutoInt).partial(dim=16, layers=3, heads=2, width=32),
    training: Trainer = symbolize(Trainer)(
        epochs=5,
        optimizer=symbolize(torch.optim.Adam).partial(lr=0.01),
        schedule=symbolize(OneCycle)(),
        select="max",
        evaluate_every=60,
        patience=6,
    ),
    mlp: tuple[int, ...] = (128, 128),
    batch_size: int = 512,
    keep_negatives: float = 1.0,
    repeats: int = 1,
    baselines: Literal["few", "all"] = "few",
    tables: AutoIntClassifier = symbolize(AutoIntClassifier)(layers=2, width=16, batch_size=64),
) -> None:
    """Predict clicks with AutoInt beside tuned baselines, and show which pairs of fields matter.

    data: CSV, Parquet or libsvm file of any size; without one, records with planted interactions.
    target: column of the label, 0 or 1.
    positive: the label's value that is a click, if it is neither 0/1 nor yes/no.
    categorical: columns that are categories although they hold numbers, separated by commas.
    sets: columns of a CSV file whose cells hold several categories with "|" between them, separated by commas.
    min_count: categories seen less often in training share one embedding.
    layout: "table", or the published file that `data` is: "criteo", "avazu", "kdd2012" or "movielens" (a folder).
    rows: planted records to train on.
    model: AutoInt's sizes.
    training: how AutoInt is trained; the baselines have learning rates of their own and more epochs.
    mlp: widths of the perceptron of AutoInt+, DNN, DeepFM and their like.
    batch_size: rows a step; fewer for small files.
    keep_negatives: share of the rows without a click that are trained on; probabilities are corrected for it.
    repeats: trainings of each model; the tables have their mean and spread.
    baselines: "few" (LR, FM, DeepFM, DNN), or "all" of the paper's.
    tables: the classifier of the breast cancer run.
    """
    fixed: dict[str, Any] = dict(
        progress=run.progress, device=run.device, seed=run.seed, keep_negatives=keep_negatives, repeats=repeats
    )
    models = report.contenders(model, training, mlp, baselines)
    if run.device.type == "cuda":
        fused, naive = report.fused_attention_ratio(run.device)
        run.measure("gpu_step", ours=fused, baseline=naive, value=naive / fused)
    else:
        run.unmeasured("gpu_step", why="no GPU")
    run.note(ATTENTION_NOTE)
    run.note(
        "Later benchmarks (BARS, built on FuxiCTR) found tuned DNN, DCN and DeepFM on a par with AutoInt on Criteo and "
        "Avazu; an advantage over a tuned perceptron is not expected here either."
    )
    if data is not None:
        options: dict[str, Any] = dict(
            positive=positive, categorical=_names(categorical), sets=_names(sets), min_count=min_count
        )
        log = click_log(data, target, **options) if layout == "table" else LAYOUTS[layout](data)
        _own(run, Path(data).stem, layout, log, models, batch_size, fixed)
        return

    for name in ("own_lr", "own_dnn", "criteo"):
        run.unmeasured(name, why="needs data=FILE" if name != "criteo" else "needs data=train.txt layout=criteo")
    compared, best = {}, {}
    for title, crosses in (("AND crosses", "and"), ("XOR crosses", "xor")):
        encoded, clicks, best[title] = report.planted_data(crosses, rows, run.seed)
        without = {"without residual": Contender(partial(model, residual=False), training)}
        if crosses == "xor":  # a plateau that only patience leaves, if anything
            models, without = report.patient(models), {}
        trained, compared[title] = compare_click_models(
            encoded, models | without, batch_size=batch_size, folder=run.folder / "train" / crosses, **fixed
        )
        run.table(title, compared[title])
        auc = {row["model"]: row["AUC"] for row in compared[title]} | {"true probabilities": best[title]}
        if crosses == "and":
            _against(run, auc, fm="FM", lr="LR", dnn="DNN", bayes="true probabilities", residual="without residual")
            attention, importance = report.explain_pairs(run, trained["AutoInt"], encoded, clicks.pairs)
            run.measure("attention_triple", value=report.pairs_of_a_triple(attention, clicks))
            run.measure("planted_first", value=report.planted_pairs_first(importance, clicks))
            run.measure("agreement", value=agreement(attention, importance))
        else:
            _against(run, auc, xor="true probabilities")
            _against(run, auc, "AutoInt+", xor_plus="true probabilities")
    run.figure("ranking", ranking_figure(compared, best))
    run.note(
        "XOR crosses have no effect of lower order that would lead to them. The true probabilities have a test AUC of "
        f"{auc['true probabilities']:.3f}; AutoInt reached {auc['AutoInt']:.3f}, AutoInt+ {auc['AutoInt+']:.3f} and "
        f"the perceptron {auc['DNN']:.3f}. Attention layers alone stay at the second order here: use AutoInt+ "
        "(model.mlp=[128,128]) if such crosses are plausible, and give it time."
    )
    run.measure("breast_cancer", value=report.binned_breast_cancer_auc(tables, run.seed))


def _own(run: Any, name: str, layout: str, log: ClickLog, models: Any, batch_size: int, fixed: Any) -> None:
    """Train on a user's log, in tenths 8 : 1 : 1, and say what was found."""
    for claim in PLANTED:
        run.unmeasured(claim, why="it is about the planted records")
    encoded = encode_log(log, run.folder / "encoded", seed=run.seed)
    batch = min(batch_size, max(16, len(encoded.train.labels) // 50))
    trained, table = compare_click_models(
        encoded, models, batch_size=batch, folder=run.folder / "train" / name, **fixed
    )
    encoded.schema.save(run.folder / "schema.json")
    auc = {row["model"]: row["AUC"] for row in table}
    run.table("test part", table)
    _against(run, auc, own_lr="LR", own_dnn="DNN")
    if layout == "criteo":
        run.measure("criteo", value=auc["AutoInt"])
    else:
        run.unmeasured("criteo", why="needs data=train.txt layout=criteo")
    attention, importance = report.explain_pairs(run, trained["AutoInt"], encoded)
    names = [one.name for one in encoded.schema.fields]
    if len(names) > 1:
        run.table("pairs of fields", report.pair_rows(attention, importance, names))
    kinds = ", ".join(f"{one.name} ({one.kind})" for one in encoded.schema.fields)
    run.note(f"{len(encoded.train.labels)} rows to train on; fields: {kinds}.")
    run.note(f"Rank correlation of attention and permutation importance: {agreement(attention, importance):.2f}.")


def _against(run: Any, auc: dict[str, float], ours: str = "AutoInt", **claims: str) -> None:
    for claim, baseline in claims.items():
        run.measure(claim, ours=auc[ours], baseline=auc[baseline], value=auc[ours] - auc[baseline])


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())
