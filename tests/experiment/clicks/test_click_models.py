from functools import partial
from pathlib import Path

import pytest
import torch

from flambeau.data.clicks.planted import planted_clicks
from flambeau.experiment.clicks.figures import pairs_figure, ranking_figure
from flambeau.experiment.clicks.models import (
    compare_click_models,
    contenders,
    fused_attention_ratio,
    pair_rows,
    pairs_of_a_triple,
    planted_data,
    planted_pairs_first,
)
from flambeau.models.tabular import AutoInt
from flambeau.training import Trainer


def matrix(pairs):
    """Largest for the first pair, then less and less."""
    filled = torch.zeros(10, 10)
    for place, (i, j) in enumerate(pairs):
        filled[j, i] = 1.0 - 0.01 * place
    return filled


def test_how_planted_pairs_are_found():
    clicks = planted_clicks(10)
    assert pairs_of_a_triple(matrix([(0, 9), (2, 4), (5, 6), (3, 4), (0, 1), (2, 3)]), clicks) == 3
    assert pairs_of_a_triple(matrix([(0, 9), (2, 4), (5, 6), (3, 4), (0, 1), (1, 9), (2, 3)]), clicks) == 2
    planted = sorted(clicks.pairs)
    assert planted_pairs_first(matrix(planted), clicks) == 1
    assert planted_pairs_first(matrix([(0, 9), *planted]), clicks) == pytest.approx(6 / 7)
    row = pair_rows(matrix(planted), matrix(planted[::-1]), [f"f{n}" for n in range(10)], 1)[0]
    assert row["fields"] == "f7 x f8" and row["attention"] == pytest.approx(0.47)


def test_planted_data_fits_its_schema_to_the_training_rows():
    data, clicks, best = planted_data("xor", 600, 0)
    assert [len(part.labels) for part in (data.train, data.validation, data.test)] == [600, 100, 200]
    assert all(set(ids) <= set(map(str, range(20))) for ids in data.schema.vocabularies.values())
    assert 0.7 < best < 1 and len(clicks.labels) == 900


def test_every_contender_is_trained_on_the_same_rows(tmp_path):
    data, _, _ = planted_data("and", 600, 0)
    trainer = Trainer(epochs=1, steps=6, select="max", evaluate_every=3, optimizer=partial(torch.optim.Adam, lr=0.01))
    ours = partial(AutoInt, dim=4, width=8, layers=1)
    few, whole = contenders(ours, trainer, (8,), "few"), contenders(ours, trainer, (8,), "all")
    assert list(few) == ["LR", "FM", "DeepFM", "DNN", "AutoInt", "AutoInt+"] and len(whole) == 14
    rates = {name: one.trainer.optimizer.keywords["lr"] for name, one in few.items()}
    assert rates["LR"] == rates["AutoInt"] == 0.01 and rates["FM"] == 0.005
    fixed = dict(batch_size=100, progress=None, device=torch.device("cpu"), seed=0)
    models, rows = compare_click_models(data, few, folder=tmp_path, **fixed)
    again = compare_click_models(data, {"DNN": few["DNN"]}, folder=Path(tmp_path / "again"), **fixed)[1]
    assert [row["AUC"] for row in rows if row["model"] == "DNN"] == [again[0]["AUC"]]
    assert rows[0]["RelaImpr %"] == 0 and all(0 < row["log-loss"] < 2 for row in rows)
    assert ranking_figure({"AND": rows}, {"AND": 0.8}).axes[0].get_title() == "AND"
    shown = {"attention": torch.rand(10, 10)}
    assert len(pairs_figure(shown, [one.name for one in data.schema.fields], {(0, 1)}).axes[0].patches) == 2


def test_fused_and_naive_attention_are_timed_in_turns():
    fused, naive = fused_attention_ratio(torch.device("cpu"), batch=4, fields=3)
    assert fused > 0 and naive > 0
