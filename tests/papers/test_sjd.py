"""The experiment runs end to end: on embedded images, and on a transformers model from a folder."""

import json

import numpy
import pytest
from PIL import Image

from flambeau.experiment import run_experiment
from flambeau.papers.sjd import CLAIMS, run

SMALL = ["images=4", "training.steps=3", "decoder.width=32", "windows=(1, 8)", "temperatures=(0.5, 1.0)"]


def test_smoke(tmp_path):
    result = run_experiment(run.experiment, preset="smoke", out=tmp_path / "run", seed=0, threads=1)
    outcomes = {claim["name"]: claim for claim in result["claims"]}
    assert set(outcomes) == {claim.name for claim in CLAIMS}
    for claim in outcomes.values():
        assert claim["value"] is not None or claim["why"]
    assert outcomes["compression"]["value"] > 1
    assert len(result["figures"]) == 3
    assert all((tmp_path / "run" / figure).stat().st_size > 1000 for figure in result["figures"])


def test_own_model(tmp_path):
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 31, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    config = transformers.LlamaConfig(**sizes, num_attention_heads=4, bos_token_id=1, eos_token_id=None)
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    (tmp_path / "prompts.json").write_text(json.dumps([[1, 5, 6], [1, 9]]))
    overrides = [
        f"model=hf:{tmp_path / 'model'}",
        f"prompts={tmp_path / 'prompts.json'}",
        "new_tokens=12",
        "images=3",
        "grid=(3, 4)",
        "cfg_scale=2.0",
        "top_k=20",
        "temperatures=()",
    ]
    result = run_experiment(run.experiment, preset="smoke", overrides=overrides, out=tmp_path / "run", threads=1)
    outcomes = {claim["name"]: claim for claim in result["claims"]}
    assert outcomes["compression"]["value"] > 1
    assert outcomes["temperature"]["why"]
    assert result["figures"] == ["figures/acceptance.png"]


def test_own_images(tmp_path):
    generator = numpy.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for number in range(12):
        pixels = generator.integers(0, 255, (20, 24, 3), dtype=numpy.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number}.png")
    overrides = [f"data={tmp_path / 'images'}", "size=16", "batch_size=4", "codes=8"]
    result = run_experiment(run.experiment, overrides=[*overrides, *SMALL], out=tmp_path / "run", threads=1)
    assert {claim["name"]: claim["value"] for claim in result["claims"]}["compression"] > 1
    assert len(result["figures"]) == 3


def test_bad_parameters(tmp_path):
    for overrides, message in (
        (["cfg_scale=2.0"], "cfg_scale needs model"),
        (["model=gpt2"], "model must be hf:"),
    ):
        with pytest.raises(ValueError, match=message):
            run_experiment(run.experiment, preset="smoke", overrides=overrides, out=tmp_path / message[:3], threads=1)
