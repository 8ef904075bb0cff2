"""Routing heads inside transformers models: generated step by step as in one pass, trained, saved, padded."""

import pytest
import torch

from flambeau.models.language.routing_huggingface import RoutedSelfAttention, RoutingConfig, load_routed, route_layers
from flambeau.nn import OnlineKMeans, collect_aux

transformers = pytest.importorskip("transformers", reason="the extra flambeau[hf] is not installed")
CONFIG = RoutingConfig(layers=(0, -1), routing_heads=2, num_clusters=3, window=16, local_window=16)


def gpt2():
    torch.manual_seed(0)
    sizes = dict(vocab_size=37, n_embd=64, n_layer=3, n_head=4, n_positions=128)
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(**sizes, bos_token_id=1, eos_token_id=None, pad_token_id=0)
    )


def llama():
    torch.manual_seed(0)
    sizes = dict(vocab_size=37, hidden_size=64, intermediate_size=96, num_hidden_layers=3)
    heads = dict(num_attention_heads=4, num_key_value_heads=2)
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**sizes, **heads, bos_token_id=1, eos_token_id=None, pad_token_id=0)
    )


def routed(make):
    model = route_layers(make(), CONFIG)
    model.train()(torch.randint(37, (2, 60)))  # the centroids start from a training batch
    return model.eval()


@pytest.mark.parametrize("make", [gpt2, llama])
def test_generation_step_by_step_equals_one_pass(make):
    model = routed(make)
    tokens = torch.randint(1, 37, (2, 20))
    with torch.no_grad():
        generated = model.generate(tokens, max_new_tokens=60, do_sample=False)
        whole = model(generated).logits
        assert torch.equal(whole[:, 19:-1].argmax(-1), generated[:, 20:])
        changed = generated.clone()
        changed[:, 50:] = 5
        assert torch.allclose(model(changed).logits[:, :50], whole[:, :50], atol=1e-5)
        cached = model(generated[:, :40], use_cache=True)
        later = model(generated[:, 40:], past_key_values=cached.past_key_values).logits
    assert torch.allclose(later, whole[:, 40:], atol=1e-5)


@pytest.mark.parametrize("make", [gpt2, llama])
def test_left_padding_is_not_seen(make):
    model = routed(make)
    tokens, mask = torch.randint(1, 37, (2, 30)), torch.ones(2, 30, dtype=torch.long)
    mask[0, :9] = 0
    other = torch.where(mask.bool(), tokens, 7)
    with torch.no_grad():
        first = model.generate(tokens, attention_mask=mask, max_new_tokens=20, do_sample=False)
        second = model.generate(other, attention_mask=mask, max_new_tokens=20, do_sample=False)
    assert torch.equal(first[:, 30:], second[:, 30:])


@pytest.mark.parametrize("make", [gpt2, llama])
def test_trains_saves_and_loads(make, tmp_path):
    model = routed(make).train()
    tokens = torch.arange(60).remainder(7).expand(4, 60)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    before = [m.centroids.clone() for m in model.modules() if isinstance(m, OnlineKMeans)]
    losses = []
    for _ in range(12):
        loss = model(tokens, labels=tokens).loss + collect_aux(model)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0] and len(before) == 2
    model.eval().save_pretrained(tmp_path / "model")
    again = load_routed(tmp_path / "model")
    assert again.config.routing == {
        "layers": [0, -1], "routing_heads": 2, "num_clusters": 3, "window": 16, "local_window": 16, "decay": 0.99,
        "commitment": 1e-2,
    }  # fmt: skip
    with torch.no_grad():
        assert torch.allclose(again(tokens).logits, model(tokens).logits, atol=1e-6)
    kinds = [type(getattr(layer, "attn", None) or layer.self_attn) is RoutedSelfAttention for layer in _layers(again)]
    assert kinds == [True, False, True]


def test_values_and_outputs_are_those_of_the_old_attention():
    """One cluster of everything, keys as queries: what the old attention does with its queries replaced by its keys."""
    model = gpt2().eval()
    old = model.transformer.h[0].attn
    query, key, value = (part.T for part in old.c_attn.weight.detach().chunk(3, 1))
    new = route_layers(model, RoutingConfig((0,), routing_heads=2)).transformer.h[0].attn
    assert torch.equal(new.local.projections.query.weight, query[:32])
    assert torch.equal(new.routing.projections.query.weight, key[32:])
    assert torch.equal(new.routing.projections.value.weight, value[32:])


def test_bad_arguments(tmp_path):
    with pytest.raises(ValueError, match=r"layers must lie in 0..2, got 5"):
        route_layers(gpt2(), RoutingConfig((5,), 2))
    with pytest.raises(ValueError, match=r"routing_heads must lie in 1..4, got 9"):
        route_layers(gpt2(), RoutingConfig((0,), 9))
    with pytest.raises(ValueError, match="laid out like GPT-2 or LLaMA"):
        route_layers(torch.nn.Linear(2, 2), CONFIG)
    gpt2().save_pretrained(tmp_path / "plain")
    with pytest.raises(ValueError, match="without routing"):
        load_routed(tmp_path / "plain")


def _layers(model):
    return model.transformer.h if hasattr(model, "transformer") else model.model.layers
