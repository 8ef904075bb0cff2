"""The experiment end to end: as it is, on a folder of images, and on a model of transformers."""

import runpy
from pathlib import Path

import numpy
import pytest
from PIL import Image

from flambeau.experiment import run_experiment
from flambeau.papers.convbn_tune import CLAIMS, run
from flambeau.training import Trainer


def test_smoke(tmp_path):
    result = run_experiment(run.experiment, preset="smoke", out=tmp_path / "run", seed=0, threads=1)
    claims = {claim["name"]: claim for claim in result["claims"]}
    assert set(claims) == {claim.name for claim in CLAIMS}
    assert all(claim["value"] is not None or claim["why"] for claim in claims.values())
    assert claims["same_losses"]["value"] < 1e-3 and claims["same_attack"]["value"] < 1e-4
    assert claims["saved_bytes"]["value"] < 0.8 and claims["gpu_memory"]["why"] == "no GPU"
    assert {row["mode"] for row in result["tables"]["fine-tuning"]} == {"train", "eval", "tune", "deploy"}
    assert (tmp_path / "run" / result["figures"][0]).stat().st_size > 5000


def folder_of_images(path):
    generator = numpy.random.default_rng(0)
    for name in ("left", "right"):
        (path / name).mkdir(parents=True)
        for number in range(8):
            Image.fromarray(generator.integers(0, 255, (40, 36, 3), dtype=numpy.uint8)).save(
                path / name / f"{number}.png"
            )
    return path


def test_own_images_in_colour(tmp_path):
    overrides = [f"data={folder_of_images(tmp_path / 'images')}", "training.steps=2", "rates=(0.01,)", "batch_size=4"]
    result = run_experiment(run.experiment, preset="smoke", overrides=overrides, out=tmp_path / "run", threads=1)
    assert next(claim for claim in result["claims"] if claim["name"] == "same_losses")["value"] < 1e-3


def test_own_images_and_a_model_of_transformers(tmp_path):
    transformers = pytest.importorskip("transformers", reason="needs the extra hf: pip install 'flambeau[hf]'")
    sizes = dict(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=5)
    config = transformers.ResNetConfig(num_channels=3, **sizes)
    transformers.ResNetForImageClassification(config).save_pretrained(tmp_path / "model")
    overrides = [f"data={folder_of_images(tmp_path / 'images')}", "size=32", "source=photos(count=70, crop=8)"]
    overrides += [f"model=hf:{tmp_path / 'model'}", "training.steps=3", "rates=(0.01,)", "batch_size=4", "repeats=1"]
    result = run_experiment(run.experiment, overrides=[*overrides, "timed=2"], out=tmp_path / "run", threads=1)
    claims = {claim["name"]: claim for claim in result["claims"]}
    assert claims["same_losses"]["value"] < 1e-3 and claims["rescaled_tune"]["value"] == pytest.approx(1, abs=0.05)
    assert len(result["tables"]["pairs"]) > 4


def test_the_example_of_a_detector_runs(monkeypatch, capsys):
    monkeypatch.setattr("flambeau.training.Trainer", lambda steps: Trainer(steps=2))
    runpy.run_path(str(Path(__file__).parents[2] / "examples" / "finetune_with_frozen_batchnorm.py"))
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("9 pairs")
    assert lines[0].split("loss ")[1][:6] == lines[2].split("loss ")[1][:6]


def test_bad_model(tmp_path):
    with pytest.raises(ValueError, match="model must be hf:FOLDER, .* got 'resnet50'"):
        run_experiment(run.experiment, preset="smoke", overrides=["model=resnet50"], out=tmp_path, threads=1)
