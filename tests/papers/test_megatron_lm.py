"""The experiment: losses, memory and traffic of a split GPT, and what it does with a user's files."""

import json

import pytest

from flambeau.experiment import run_experiment
from flambeau.papers.catalog import describe, load


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    folder = tmp_path_factory.mktemp("megatron_lm")
    (folder / "race").mkdir()
    question = {
        "article": "a b c",
        "questions": ["is it _ ?"] * 8,
        "options": [["a", "b", "c", "d"]] * 8,
        "answers": ["A"] * 8,
    }
    for part in ("train", "test"):
        (folder / "race" / part).mkdir()
        (folder / "race" / part / "1.txt").write_text(json.dumps(question))
    (folder / "wiki").write_text(" = Title = \n some words , and others .\n" * 4)
    (folder / "lambada").write_text('{"text": "some words and others"}\n')
    overrides = [f"wikitext={folder / 'wiki'}", f"lambada={folder / 'lambada'}", f"race={folder / 'race'}"]
    overrides += ["bert.width=16", "bert.depth=1", "bert_training.steps=2", "bert_depths=(1,)"]
    return folder, run_experiment(
        load("megatron_lm"), preset="smoke", out=folder / "run", overrides=overrides, seed=0, threads=1
    )


def test_smoke_measures_every_claim_or_says_why(result):
    claims = {claim["name"]: claim for claim in result[1]["claims"]}
    assert set(claims) == {claim.name for claim in describe("megatron_lm").claims}
    for name, claim in claims.items():
        assert (claim["value"] is None) == name.startswith("gpu"), name
    assert claims["loss_gap"]["value"] <= 5e-4
    assert claims["all_reduces"]["value"] == 4 and claims["loss_traffic"]["value"] == 3
    assert claims["memory"]["value"] < 0.56
    assert claims["weak_scaling"]["value"] <= 8
    assert 0 <= claims["race"]["value"] <= 100 and claims["wikitext"]["value"] > 1


def test_report_and_tables(result):
    folder, found = result
    report = json.loads((folder / "run" / "report.json").read_text())
    assert set(report) == {"losses", "memory", "traffic", "weak_scaling"}
    assert len(report["losses"]["tp2"]) == len(report["losses"]["one process"]) == 3
    assert len(report["memory"]) == 2 and report["traffic"]["loss"]["calls"] == {"all_reduce": 3}
    numerics = found["tables"]["split gradients against one process"]
    assert all(row["agrees"] for row in numerics)
    assert [row["GPUs"] for row in found["tables"]["weak scaling, computed"]][:4] == [1, 2, 4, 8]
    assert len(found["tables"]["BERTs trained with either placement of the norms"]) == 2
    assert [name.rpartition("/")[2] for name in found["figures"]] == ["losses.png", "memory.png"]


def test_published_sizes_are_presets():
    from flambeau.training.parallel.cost import TransformerSize

    billions = {}
    for preset in ("paper", "gpt2-2.5b", "gpt2-355m"):
        tree = load("megatron_lm").tree(preset)
        size = TransformerSize(tree["model.depth"], tree["model.width"], tree["model.heads"])
        billions[preset] = round(size.parameters / 1e9, 2)
        assert tree["training.steps"] == 300_000 and tree["training.optimizer.lr"] == 1.5e-4
    assert billions == {"paper": 8.32, "gpt2-2.5b": 2.49, "gpt2-355m": 0.36}
    bert = load("megatron_lm").tree("bert-3.9b")
    assert round(TransformerSize(bert["bert.depth"], bert["bert.width"], bert["bert.heads"]).parameters / 1e9, 1) == 3.9
    assert bert["architecture"] == "bert" and bert["training.schedule.warmup"] == 10_000


def test_bad_use(tmp_path):
    with pytest.raises(ValueError, match="heads must be divisible by the 2 ranks"):
        run_experiment(
            load("megatron_lm"), preset="smoke", out=tmp_path / "run", seed=0,
            overrides=["model.heads=1", "training.steps=1"],
        )  # fmt: skip
