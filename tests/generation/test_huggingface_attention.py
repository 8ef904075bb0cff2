import pytest
import torch

transformers = pytest.importorskip("transformers", reason="transformers is not installed (pip install 'flambeau[hf]')")

from flambeau.generation import huggingface_attention  # noqa: E402
from flambeau.generation.huggingface_attention import use_lean_attention  # noqa: E402

SIZES = {"vocab_size": 50, "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": None}  # fmt: skip


def tiny(name):
    torch.manual_seed(0)
    if name == "GPT2":
        config = transformers.GPT2Config(
            n_embd=32, n_head=4, n_layer=2, vocab_size=50, n_positions=64, bos_token_id=1, eos_token_id=None
        )
        model = transformers.GPT2LMHeadModel(config)
    else:
        more = {
            "Llama": {},
            "Mistral": {"sliding_window": 8},
            "Gemma2": {"sliding_window": 8, "head_dim": 12},  # also caps its scores
            "GptOss": {"sliding_window": 8, "head_dim": 12, "num_local_experts": 4},  # also has sinks
        }[name]
        config = getattr(transformers, f"{name}Config")(**SIZES, **more)
        model = getattr(transformers, f"{name}ForCausalLM")(config)
    for name, weight in model.named_parameters():
        if weight.ndim > 1 or "sinks" in name:
            torch.nn.init.normal_(weight, std=0.3)
    return model.eval()


@pytest.fixture
def calls(monkeypatch):
    """Query lengths that reached lean_decode."""
    found, original = [], huggingface_attention.lean_decode

    def counting(q, *arguments, **options):
        found.append(q.shape[1])
        return original(q, *arguments, **options)

    monkeypatch.setattr(huggingface_attention, "lean_decode", counting)
    return found


def generate(model, padding, new=12, **options):
    ids = torch.randint(1, 50, (3, 20), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    if padding:
        mask[0, :7], mask[1, :3] = 0, 0
    return model.generate(
        ids, attention_mask=mask, max_new_tokens=new, do_sample=False, return_dict_in_generate=True,
        output_logits=True, pad_token_id=0, **options,
    )  # fmt: skip


@pytest.mark.parametrize("padding", [False, True])
@pytest.mark.parametrize("name", ["GPT2", "Llama", "Mistral", "Gemma2", "GptOss"])
def test_generates_what_eager_attention_generates(name, padding, calls):
    model = tiny(name)
    model.set_attn_implementation("eager")
    expected = generate(model, padding)
    ours = generate(use_lean_attention(model), padding)
    assert calls.count(1) == 2 * 11  # every layer of every step after the prompt
    assert (20 in calls) == (name in ("Gemma2", "GptOss"))
    assert torch.equal(ours.sequences, expected.sequences)
    for a, b in zip(ours.logits, expected.logits):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_static_cache_and_assisted_steps(calls):
    model = use_lean_attention(tiny("Llama"))
    expected = generate(model, True)
    calls.clear()
    assert torch.equal(generate(model, True, cache_implementation="static").sequences, expected.sequences)
    assert calls.count(1) == 2 * 11
    ids = torch.randint(1, 50, (1, 20), generator=torch.Generator().manual_seed(2))
    options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    plain = model.generate(ids, **options)
    calls.clear()
    assert torch.equal(model.generate(ids, prompt_lookup_num_tokens=3, **options), plain)
    assert any(1 < queries <= 4 for queries in calls)


def test_training_and_undoing(calls):
    model = use_lean_attention(tiny("Llama"))
    model(torch.ones(1, 4, dtype=torch.long), labels=torch.ones(1, 4, dtype=torch.long)).loss.backward()
    assert not calls and model.get_input_embeddings().weight.grad is not None
    model.set_attn_implementation("sdpa")
    generate(model, False)
    assert not calls
    capped = use_lean_attention(tiny("Gemma2"))
    with pytest.raises(ValueError, match="eager"):
        capped(torch.ones(1, 4, dtype=torch.long))  # with gradients


def test_models_without_the_interface():
    with pytest.raises(ValueError, match="Linear"):
        use_lean_attention(torch.nn.Linear(2, 2))
