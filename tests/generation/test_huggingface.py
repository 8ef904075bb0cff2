"""transformers models under our decoders: same tokens, own row lengths, refusals by name."""

import json

import pytest
import torch

transformers = pytest.importorskip("transformers")

from flambeau.generation import RepetitionPenalty, SpeculativeJacobi, generate  # noqa: E402
from flambeau.generation.huggingface import load, pad_left, read_prompts, speculative_jacobi, wrap  # noqa: E402

SIZES = {"vocab_size": 31, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
ENDS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}


def llama(**options):
    torch.manual_seed(0)
    sizes = SIZES | {"intermediate_size": 48, "num_key_value_heads": 2, "max_position_embeddings": 64} | ENDS
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes | options)).eval()
    for parameter in model.parameters():
        parameter.data.mul_(3)
    return model.double()


def prompts(rows=3, length=6):
    return torch.randint(1, 31, (rows, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_greedy_decoding_equals_the_models_own(attention):
    model, ids = llama(), prompts()
    model.set_attn_implementation(attention)
    expected = model.generate(ids, max_new_tokens=25, do_sample=False)
    assert torch.equal(generate(wrap(model), ids, 25, temperature=0).tokens, expected)
    out = SpeculativeJacobi(6, scheme="jacobi").generate(wrap(model), ids, 25)
    assert torch.equal(out.tokens, expected)
    assert out.stats.nfe.max() <= 25


def test_other_architectures():
    torch.manual_seed(0)
    gpt2 = transformers.GPT2LMHeadModel(transformers.GPT2Config(**SIZES, n_positions=64, **ENDS)).eval().double()
    expected = gpt2.generate(prompts(), max_new_tokens=20, do_sample=False)
    assert torch.equal(SpeculativeJacobi(5, scheme="jacobi").generate(wrap(gpt2), prompts(), 20).tokens, expected)


def test_generate_accepts_the_callable_and_its_padding_and_processors():
    model, ids = llama(), prompts()
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    options = {"attention_mask": mask, "max_new_tokens": 20, "do_sample": False, "repetition_penalty": 1.3}
    expected = model.generate(ids, **options)
    got = model.generate(ids, custom_generate=speculative_jacobi, window=5, **options)
    assert torch.equal(got, expected)


def test_custom_generate_samples_like_the_decoder():
    model, ids = llama(), prompts()
    options = {"temperature": 0.7, "top_k": 8, "repetition_penalty": 1.3}
    got = model.generate(
        ids, custom_generate=speculative_jacobi, window=5, seed=3, max_new_tokens=20, do_sample=True, **options
    )
    out = SpeculativeJacobi(5).generate(
        wrap(model),
        ids,
        20,
        temperature=0.7,
        top_k=8,
        processors=(RepetitionPenalty(1.3),),
        generator=torch.Generator().manual_seed(3),
    )
    assert torch.equal(got, out.tokens)


def test_end_token_of_the_generation_config():
    model, ids = llama(eos_token_id=7), prompts(8)
    expected = model.generate(ids, max_new_tokens=40, do_sample=False)
    got = model.generate(ids, custom_generate=speculative_jacobi, window=5, max_new_tokens=40, do_sample=False)
    assert torch.equal(got[:, : expected.shape[1]], expected)


@pytest.mark.parametrize("guided", [False, True])
def test_models_load_from_a_folder_and_sample_with_and_without_guidance(tmp_path, guided):
    llama().float().save_pretrained(tmp_path, safe_serialization=True)
    model, ids = load(tmp_path), prompts()
    options = {"cfg_scale": 2.0, "uncond_ids": ids[:, -1:]} if guided else {}
    plain = generate(model, ids, 20, generator=torch.Generator().manual_seed(0), **options)
    one = SpeculativeJacobi(1).generate(model, ids, 20, generator=torch.Generator().manual_seed(0), **options)
    assert torch.equal(one.tokens, plain.tokens)
    ours = SpeculativeJacobi(8).generate(model, ids, 20, generator=torch.Generator().manual_seed(0), **options)
    assert ours.tokens.shape == (3, 26) and (ours.stats.nfe <= 20).all()


@pytest.mark.parametrize(
    "config, message",
    [
        (
            lambda: transformers.MistralConfig(**SIZES, num_key_value_heads=2, sliding_window=8),
            "DynamicSlidingWindowLayer",
        ),
        (lambda: transformers.MambaConfig(vocab_size=31, hidden_size=16, num_hidden_layers=1), "cache_params"),
        (lambda: transformers.BloomConfig(vocab_size=31, hidden_size=16, n_layer=1, n_head=2), "takes no position_ids"),
    ],
)
def test_models_that_cannot_be_truncated_are_refused(config, message):
    with pytest.raises(ValueError, match=message):
        wrap(transformers.AutoModelForCausalLM.from_config(config()))


def test_unsupported_generation_options_are_refused():
    model, ids = llama(), prompts()
    for options, message in (
        ({"guidance_scale": 2.0}, "guidance_scale=2.0"),
        ({"num_beams": 2}, "num_beams=1"),
        ({"eos_token_id": [3, 4]}, "one end-of-sequence token"),
        ({"max_time": 5.0}, "MaxTimeCriteria"),
    ):
        with pytest.raises(ValueError, match=message):
            model.generate(ids, custom_generate=speculative_jacobi, max_new_tokens=4, do_sample=False, **options)


def test_prompt_files(tmp_path):
    path = tmp_path / "prompts.json"
    path.write_text(json.dumps([[1, 2, 3], [4]]))
    tokens, mask = pad_left(read_prompts(path))
    assert tokens.tolist() == [[1, 2, 3], [0, 0, 4]] and mask.tolist() == [[True] * 3, [False, False, True]]
    for content, message in (
        ([], "list of prompts"),
        ([[1], "a"], "texts, or non-empty"),
        (["a"], "folder of a tokenizer"),
    ):
        path.write_text(json.dumps(content))
        with pytest.raises(ValueError, match=message):
            read_prompts(path)
    path.write_text(json.dumps({"annotations": [{"caption": "a cat", "id": 3}]}))
    with pytest.raises(ValueError, match="folder of a tokenizer"):
        read_prompts(path)
