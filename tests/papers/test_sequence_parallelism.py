"""The experiment runs end to end: on its own text, and on a transformers model with a tokenizer and text from files."""

import pytest

from flambeau.experiment import run_experiment
from flambeau.papers.sequence_parallelism import CLAIMS, run


def test_smoke(tmp_path):
    result = run_experiment(run.experiment, preset="smoke", out=tmp_path / "run", seed=0, threads=1)
    outcomes = {claim["name"]: claim for claim in result["claims"]}
    assert set(outcomes) == {claim.name for claim in CLAIMS}
    for claim in outcomes.values():
        assert claim["value"] is not None or claim["why"]
    assert outcomes["convergence"]["value"] <= 5e-4
    assert outcomes["batch_2_heads"]["value"] > 1.5
    assert all((tmp_path / "run" / figure).stat().st_size > 1000 for figure in result["figures"])
    assert len(result["figures"]) == 2


def test_own_model_and_text(tmp_path):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    words = {word: number for number, word in enumerate(["[UNK]", "[CLS]", "[MASK]", "a", "rose", "is"])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "text.txt").write_text("a rose is a rose is " * 40)
    sizes = {"vocab_size": 6, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    quiet = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "pad_token_id": 0}
    config = transformers.BertConfig(**sizes, **quiet, num_attention_heads=2, max_position_embeddings=32)
    transformers.BertForMaskedLM(config).save_pretrained(tmp_path / "model")
    overrides = [
        f"data={tmp_path / 'text.txt'}",
        f"tokenizer={tmp_path / 'tokenizer.json'}",
        f"model=hf:{tmp_path / 'model'}",
        "mode=ulysses",
        "region=blocks",
    ]
    result = run_experiment(run.experiment, preset="smoke", overrides=overrides, out=tmp_path / "run", threads=1)
    assert {claim["name"]: claim["value"] for claim in result["claims"]}["convergence"] <= 5e-4


def test_bad_parameters(tmp_path):
    (tmp_path / "bare.json").write_text(
        '{"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}, "added_tokens": []}'
    )
    cases = (
        ("model=bert", ValueError, "model must be"),
        ("model=hf:bert", ValueError, "region blocks"),
        ("attention=sparse", ValueError, "attention must be dense, window:W or linformer:K"),
        ("mode=spiral", ValueError, "spiral"),
        (f"tokenizer={tmp_path / 'none.json'}", FileNotFoundError, "tokenizer"),
        (f"tokenizer={tmp_path / 'bare.json'}", ValueError, r"\[CLS\]"),
        ("length=2", ValueError, "length must be at least 3"),
    )
    for number, (override, error, message) in enumerate(cases):
        with pytest.raises(error, match=message):
            run_experiment(run.experiment, preset="smoke", overrides=[override], out=tmp_path / f"{number}", threads=1)
