"""The experiment runs end to end: embedded, on a user's text, on the published corpora's layout, on a user's model."""

import json

import pytest

from flambeau.experiment import run_experiment
from flambeau.papers.catalog import describe, load

SMALL = (
    "language.dim=16", "language.depth=2", "language.window=16", "language.local_window=16", "context=48",
    "language_training.steps=2",
)  # fmt: skip


def run(tmp_path, *overrides, preset="cpu"):
    experiment = load("routing_transformer")
    return run_experiment(experiment, preset=preset, overrides=[*overrides], out=tmp_path / "run", seed=0, threads=1)


def test_smoke_measures_every_claim_or_says_why(tmp_path):
    result = run(tmp_path, preset="smoke")
    claims = {claim["name"]: claim for claim in result["claims"]}
    assert set(claims) == {claim.name for claim in describe("routing_transformer").claims}
    assert all(claim["value"] is not None or claim["why"] for claim in claims.values())
    assert claims["products"]["value"] == pytest.approx((8 + 2 * 32 * 2 + 2 * 32 / 16) / 512)
    assert claims["own_language"]["value"] is None and claims["gpu_speed"]["why"] == "no GPU"
    assert {row["attention"] for row in result["tables"]["recall"]} == {"full", "causal", "balanced", "random", "local"}
    assert len(result["figures"]) == 3
    assert all((tmp_path / "run" / figure).stat().st_size > 1000 for figure in result["figures"])


def test_a_users_text(tmp_path):
    (tmp_path / "book.txt").write_text("the quick brown fox jumps over the lazy dog. " * 60)
    result = run(tmp_path, *SMALL, f"data={tmp_path / 'book.txt'}")
    claims = {claim["name"]: claim for claim in result["claims"]}
    assert claims["own_language"]["value"] is not None and claims["own_word_perplexity"]["value"] > 1
    assert claims["causal"]["value"] is None and "book.txt" in claims["causal"]["why"]
    assert [row["heads"] for row in result["tables"]["language models"]] == ["local", "local and routing"]


def test_the_published_layout_of_wikitext(tmp_path):
    folder = tmp_path / "wikitext-103"
    folder.mkdir()
    for part in ("train", "valid", "test"):
        (folder / f"wiki.{part}.tokens").write_text(" = Title = \n\n the cat sat on the mat \n" * 40)
    small = ("language.dim=16", "language.depth=2", "language.window=16", "language.local_window=16", "context=48",
             "language.embedding_dim=8", "language_training.steps=2", "language_training.accumulate=1",
             "language.local_heads=2", "language.routing_heads=2", "language_training.precision=fp32")  # fmt: skip
    result = run(tmp_path, f"data={folder}", *small, preset="paper")
    claims = {claim["name"]: claim for claim in result["claims"]}
    assert claims["own_word_perplexity"]["value"] > 1
    assert "bits a word" in result["tables"]["language models"][0]


def test_a_users_model(tmp_path):
    transformers = pytest.importorskip("transformers", reason="the extra flambeau[hf] is not installed")
    tokenizers = pytest.importorskip("tokenizers", reason="the extra flambeau[hf] is not installed")
    words = "the quick brown fox jumps over lazy dog .".split()
    vocabulary = {word: number for number, word in enumerate(["<unk>", *words])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(tmp_path / "model")
    config = transformers.GPT2Config(vocab_size=len(vocabulary), n_embd=16, n_layer=2, n_head=2, n_positions=64)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "model")
    (tmp_path / "book.txt").write_text("the quick brown fox jumps over the lazy dog . " * 60)
    given = (f"data={tmp_path / 'book.txt'}", f"model=hf:{tmp_path / 'model'}")
    result = run(tmp_path, *given, "language_training.steps=2", "context=32")
    claims = {claim["name"]: claim for claim in result["claims"]}
    assert claims["own_model"]["value"] is not None and claims["own_language"]["value"] is None
    from flambeau.models.language.routing_huggingface import load_routed

    assert load_routed(tmp_path / "run" / "model").config.routing["layers"] == [1]
    assert json.loads((tmp_path / "run" / "model" / "config.json").read_text())["routing"]["window"] == 8


def test_bad_parameters(tmp_path):
    with pytest.raises(ValueError, match="model needs data=FILE"):
        run(tmp_path / "a", "model=hf:gpt2", preset="smoke")
    (tmp_path / "book.txt").write_text("word " * 100)
    with pytest.raises(ValueError, match="model must be hf:FOLDER"):
        run(tmp_path / "b", "model=gpt2", f"data={tmp_path / 'book.txt'}")
    with pytest.raises(ValueError, match="a window needs 1025 tokens, got 450"):
        run(tmp_path / "c", f"data={tmp_path / 'book.txt'}")
