"""GPT and BERT against transformers' models with converted weights, and their own properties."""

import pytest
import torch
from torch.nn import functional as F

from flambeau.models.language import BERT, GPT
from flambeau.models.language.huggingface_weights import (
    bert_from_transformers,
    bert_to_transformers,
    by_heads,
    by_thirds,
    decoder_from_transformers,
    gpt_from_transformers,
    gpt_to_transformers,
)

transformers = pytest.importorskip("transformers", reason="transformers is not installed (flambeau[hf])")


def gpt2(**changes):
    torch.manual_seed(0)
    config = {"vocab_size": 37, "n_positions": 16, "n_embd": 24, "n_layer": 2, "n_head": 3} | changes
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**config, bos_token_id=0, eos_token_id=0))
    for parameter in model.parameters():  # biases and norms other than 0 and 1
        parameter.data += 0.02 * torch.randn_like(parameter)
    return model.eval()


def bert_of_transformers():
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=37, hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40,
        max_position_embeddings=16,
    )  # fmt: skip
    model = transformers.BertForPreTraining(config)
    for parameter in model.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    return model.eval()


@pytest.mark.parametrize("activation", ["gelu_new", "gelu"])
def test_gpt_is_transformers_gpt2(activation):
    theirs = gpt2(activation_function=activation)
    ours = gpt_from_transformers(theirs)
    tokens = torch.randint(37, (2, 16))
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens), theirs(input_ids=tokens).logits, rtol=1e-4, atol=1e-5)
        back = gpt_to_transformers(ours)
        torch.testing.assert_close(back(input_ids=tokens).logits, theirs(input_ids=tokens).logits)
    assert ours.head.weight is ours.embedding.weight


def test_padding_of_the_vocabulary_is_cut_off_on_export():
    ours = GPT(48, 16, 24, 1, 3).eval()
    tokens = torch.randint(37, (2, 16))
    exported = gpt_to_transformers(ours, vocab=37).eval()
    with torch.no_grad():
        torch.testing.assert_close(exported(input_ids=tokens).logits, ours(tokens)[..., :37], rtol=1e-4, atol=1e-5)
    assert exported.config.vocab_size == 37
    with pytest.raises(ValueError, match=r"vocab must lie in 1..48, got 50"):
        gpt_to_transformers(ours, vocab=50)


def test_bert_is_transformers_bert_and_back():
    theirs = bert_of_transformers()
    ours = bert_from_transformers(theirs)
    tokens, segments = torch.randint(37, (2, 16)), torch.randint(2, (2, 16))
    mask = torch.ones(2, 16, dtype=torch.bool)
    mask[1, 11:] = False
    with torch.no_grad():
        expected = theirs(input_ids=tokens, attention_mask=mask, token_type_ids=segments)
        words, order = ours(tokens, mask, segments)
        torch.testing.assert_close(words[mask], expected.prediction_logits[mask], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(order, expected.seq_relationship_logits, rtol=1e-4, atol=1e-5)
        back = bert_to_transformers(ours)(input_ids=tokens, attention_mask=mask, token_type_ids=segments)
        torch.testing.assert_close(back.prediction_logits[mask], expected.prediction_logits[mask])


def test_a_llama_is_a_decoder():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=37, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=48, max_position_embeddings=32,
        rope_parameters={"rope_theta": 5000.0, "rope_type": "default"},
    )  # fmt: skip
    theirs = transformers.LlamaForCausalLM(config).eval()
    tokens = torch.randint(37, (2, 16))
    with torch.no_grad():
        expected = theirs(input_ids=tokens).logits
        torch.testing.assert_close(decoder_from_transformers(theirs)(tokens), expected, rtol=1e-4, atol=1e-5)


def test_what_cannot_be_converted_is_refused():
    with pytest.raises(ValueError, match="activation_function must be gelu or gelu_new, got 'relu'"):
        gpt_from_transformers(gpt2(activation_function="relu"))
    with pytest.raises(ValueError, match="norms before each part"):
        gpt_to_transformers(GPT(37, 16, 24, 1, 3, norm="post"))
    with pytest.raises(ValueError, match="norms behind the sums"):
        bert_to_transformers(BERT(37, 16, 24, 1, 3, norm="pre"))


def test_layouts_are_inverse():
    weight = torch.arange(3 * 2 * 4)[:, None]
    assert by_heads(weight, 2)[:8].flatten().tolist() == [0, 1, 2, 3, 8, 9, 10, 11]
    assert torch.equal(by_thirds(by_heads(weight, 2), 2), weight)


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_no_token_sees_the_future(norm):
    torch.manual_seed(0)
    model = GPT(37, 16, 24, 2, 3, norm=norm).eval()
    tokens = torch.randint(37, (1, 16))
    changed = tokens.clone()
    changed[:, 9:] = (changed[:, 9:] + 1) % 37
    with torch.no_grad():
        before, after = model(tokens), model(changed)
    torch.testing.assert_close(before[:, :9], after[:, :9])
    assert (before[:, 9:] - after[:, 9:]).abs().max() > 1e-3


def test_token_losses_and_initialisation():
    torch.manual_seed(0)
    model = GPT(37, 16, 64, 8, 4, dropout=0.0)
    tokens, targets = torch.randint(37, (2, 16)), torch.randint(37, (2, 16))
    targets[0, 0] = -100
    losses = model.token_losses(tokens, targets)
    expected = F.cross_entropy(model(tokens).flatten(0, 1), targets.flatten(), reduction="none").view(2, 16)
    torch.testing.assert_close(losses, expected)
    assert losses[0, 0] == 0
    assert float(model.blocks[0].mlp.down.weight.detach().std()) == pytest.approx(0.02 / 4, rel=0.05)
    assert float(model.blocks[0].mlp.up.weight.detach().std()) == pytest.approx(0.02, rel=0.05)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"heads": 5}, "width must be divisible by heads"),
        ({"norm": "middle"}, "norm must be 'pre' or 'post'"),
        ({"dropout": 1.0}, "dropout must lie in"),
        ({"depth": 0}, "depth must be at least 1"),
    ],
)
def test_bad_sizes(arguments, message):
    with pytest.raises(ValueError, match=message):
        GPT(**{"vocab": 37, "length": 16, "width": 24, "depth": 1, "heads": 3, **arguments})
    with pytest.raises(ValueError, match="17, the model has 16 positions"):
        GPT(37, 16, 24, 1, 3)(torch.zeros(1, 17).long())
