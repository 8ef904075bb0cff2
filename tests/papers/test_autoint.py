"""The experiment on planted records, on a user's file, and on files laid out as the published ones."""

import json

import numpy as np
import pytest

from flambeau.data.clicks.fields import FieldSchema
from flambeau.experiment import run_experiment
from flambeau.papers.catalog import describe, load

FAST = ("model.width=8", "model.layers=1", "training.epochs=3", "training.evaluate_every=5")


def run(tmp_path, *overrides, preset="cpu", seed=0):
    return run_experiment(
        load("autoint"), preset=preset, out=tmp_path / "run", overrides=[*FAST, *overrides], seed=seed
    )


def clicks(rows=600):
    rng = np.random.default_rng(0)
    city, price = rng.choice(["Oslo", "Rome", "Lima"], rows), rng.normal(10, 3, rows)
    genres = [list(rng.choice(["a", "b", "c"], rng.integers(1, 3), replace=False)) for _ in range(rows)]
    slot = rng.integers(0, 4, rows)
    clicked = (2.0 * (city == "Rome") * (slot == 1) + 0.3 * (price - 10) + rng.normal(0, 0.5, rows) > 0.3).astype(int)
    return {"clicked": clicked, "city": city, "price": price, "slot": slot, "genres": genres}


def test_smoke_measures_every_claim_or_says_why(tmp_path):
    result = run_experiment(load("autoint"), preset="smoke", out=tmp_path, seed=0)
    assert len(result["claims"]) == len(describe("autoint").claims)
    for claim in result["claims"]:
        elsewhere = claim["name"] in ("own_lr", "own_dnn", "criteo", "gpu_step")
        assert (claim["value"] is None) == elsewhere and claim["why"]
    assert {row["model"] for row in result["tables"]["AND crosses"]} == {
        "LR", "FM", "DeepFM", "DNN", "AutoInt", "AutoInt+", "without residual",
    }  # fmt: skip
    assert len(result["figures"]) == 2 and any("XOR" in note for note in result["notes"])
    assert any("Attention describes" in note for note in result["notes"])


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_users_file(tmp_path, kind):
    pandas = pytest.importorskip("pandas", reason="the extra flambeau[tabular] is not installed")
    pytest.importorskip("pyarrow", reason="the extra flambeau[tabular] is not installed")
    frame = pandas.DataFrame(clicks())
    if kind == "csv":
        frame["genres"] = frame["genres"].str.join("|")
        frame.to_csv(tmp_path / "clicks.csv", index=False)
    else:
        frame.to_parquet(tmp_path / "clicks.parquet")
    sets = ["sets=genres"] if kind == "csv" else []
    result = run(tmp_path, f"data={tmp_path / f'clicks.{kind}'}", "target=clicked", "categorical=slot", *sets)
    claims = {claim["name"]: claim for claim in result["claims"]}
    assert claims["own_lr"]["value"] is not None and claims["fm"]["value"] is None and claims["fm"]["why"]
    assert {row["fields"] for row in result["tables"]["pairs of fields"]} >= {"city x slot", "city x price"}
    assert any("city (categorical), price (numeric), slot (categorical), genres (set)" in n for n in result["notes"])
    schema = FieldSchema.load(tmp_path / "run" / "schema.json")
    assert set(schema.vocabularies["city"]) == {"Oslo", "Rome", "Lima"}
    assert len(result["tables"]["test part"]) == 6 and len(result["figures"]) == 1


def test_all_baselines_and_thinned_negatives_on_a_published_layout(tmp_path):
    rng = np.random.default_rng(0)
    lines = [
        "\t".join([str(int(n % 3 == 0)), *map(str, rng.integers(0, 50, 13)), *rng.choice(["a", "b", ""], 26)])
        for n in range(200)
    ]
    (tmp_path / "train.txt").write_text("\n".join(lines) + "\n")
    options = ("layout=criteo", "baselines=all", "keep_negatives=0.5", "training.epochs=1")
    result = run(tmp_path, f"data={tmp_path / 'train.txt'}", *options)
    claims = {claim["name"]: claim for claim in result["claims"]}
    assert claims["criteo"]["value"] is not None
    assert len(result["tables"]["test part"]) == 14


def test_sizes_can_be_searched():
    from flambeau.symbolic import template

    tree = load("autoint").tree("smoke", ["model.layers=oneof([1, 2, 3])", "model.heads=oneof([1, 2])"])
    assert template(tree).space_size == 6
    paper = load("autoint").tree("paper")
    assert (paper["model.width"], paper["batch_size"], paper["training.epochs"]) == (64, 1024, 3)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["target=click"], "has no column 'click'; it has clicked, city"),
        (["categorical=town"], "has no column 'town'"),
        (["target=city"], "expected a label such as 0 or 1, got 'Oslo'.*positive="),
        (["layout=movielens"], "has no users.dat"),
        (["model.heads=3"], "width must be divisible by heads"),
    ],
)
def test_bad_use_is_said_clearly(tmp_path, overrides, message):
    rows = list(zip(*clicks(50).values()))
    text = "\n".join(",".join(map(str, row[:4])) for row in rows).replace("Lima", "Oslo").replace("Rome", "Oslo")
    (tmp_path / "clicks.csv").write_text("clicked,city,price,slot\n" + text + "\n")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        run(tmp_path, f"data={tmp_path / 'clicks.csv'}", *overrides)


def test_the_claims_are_printed_without_torch():
    assert json.dumps([claim.name for claim in describe("autoint").claims])
