import pytest

from flambeau.experiment import run_experiment
from flambeau.papers.lean_attention import CLAIMS, run


def test_smoke(tmp_path):
    result = run_experiment(run.experiment, preset="smoke", out=tmp_path / "run", seed=0, threads=1)
    outcomes = {claim["name"]: claim for claim in result["claims"]}
    assert set(outcomes) == {claim.name for claim in CLAIMS}
    for claim in outcomes.values():
        assert claim["value"] is not None or claim["why"]
    assert outcomes["error"]["value"] < 1e-5
    assert (tmp_path / "run" / "figures" / "milliseconds.png").stat().st_size > 1000


def test_own_model(tmp_path):
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 31, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    config = transformers.LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2, eos_token_id=None)
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    overrides = [f"model=hf:{tmp_path / 'model'}", "context=16", "new_tokens=24", "dtype=bfloat16"]
    result = run_experiment(run.experiment, preset="smoke", overrides=overrides, out=tmp_path / "run", threads=1)
    outcomes = {claim["name"]: claim for claim in result["claims"]}
    assert outcomes["generation"]["value"] > 0 and "bfloat16" in outcomes["error"]["why"]


@pytest.mark.parametrize(
    "override, message",
    [("dtype=int8", "dtype is 'int8'"), ("model=gpt2", "expected hf:FOLDER"), ("shapes=[[[-5], 1, 1]]", "lengths")],
)
def test_bad_parameters(tmp_path, override, message):
    with pytest.raises(ValueError, match=message):
        run_experiment(run.experiment, preset="smoke", overrides=[override], out=tmp_path / "run", threads=1)
