"""All attention layers: one interface, strict causality, decoding equal to one pass, padding, bad inputs."""

import pytest
import torch

from flambeau.nn import (
    DenseAttention,
    LocalAttention,
    LocalRoutingAttention,
    LSHAttention,
    RandomRoutingAttention,
    RoutingAttention,
    StridedAttention,
)

DIM, HEADS, TIME = 64, 4, 150
CAUSAL = {
    "dense": lambda: DenseAttention(DIM, HEADS),
    "dense shared": lambda: DenseAttention(DIM, HEADS, shared_qk=True, qk_norm=True, mask_self=True, scale=1.0),
    "local": lambda: LocalAttention(DIM, HEADS, 32),
    "strided": lambda: StridedAttention(DIM, HEADS, 32),
    "lsh": lambda: LSHAttention(DIM, HEADS, 4, 32),
    "random": lambda: RandomRoutingAttention(DIM, HEADS, 4, 32),
    "routing": lambda: RoutingAttention(DIM, HEADS, 4, 32),
    "routing biased": lambda: RoutingAttention(DIM, HEADS, 4, 32, mask_self=True, rank_bias=True, scale=1.0),
    "local and routing": lambda: LocalRoutingAttention(DIM, 2, 2, 32, 4, 32),
}
BIDIRECTIONAL = {
    "dense": lambda: DenseAttention(DIM, HEADS, causal=False),
    "local": lambda: LocalAttention(DIM, HEADS, 32, causal=False),
    "strided": lambda: StridedAttention(DIM, HEADS, 32, causal=False),
    "lsh": lambda: LSHAttention(DIM, HEADS, 4, 32, causal=False),
    "random": lambda: RandomRoutingAttention(DIM, HEADS, 4, 32, causal=False),
    "routing": lambda: RoutingAttention(DIM, HEADS, 4, 32, causal=False),
    "local and routing": lambda: LocalRoutingAttention(DIM, 2, 2, 32, 4, 32, causal=False),
}


def built(make, seed=0):
    torch.manual_seed(seed)
    layer = make().eval()
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            if "bias" in name:
                parameter.normal_()
    return layer


@pytest.mark.parametrize("name", CAUSAL)
def test_a_later_token_changes_no_bit_of_earlier_outputs(name):
    layer = built(CAUSAL[name])
    x = torch.randn(2, TIME, DIM)
    with torch.no_grad():
        before = layer(x)[0]
        for position in (1, 40, 100, TIME - 1):
            changed = x.clone()
            changed[:, position:] = 3 * torch.randn(2, TIME - position, DIM)
            after = layer(changed)[0]
            assert torch.equal(after[:, :position], before[:, :position]), position
            assert not torch.equal(after[:, position:], before[:, position:])


@pytest.mark.parametrize("name", CAUSAL)
def test_decoding_equals_one_pass_over_200_steps(name):
    layer = built(CAUSAL[name])
    x = torch.randn(2, 233, DIM)
    with torch.no_grad():
        whole = layer(x)[0]
        cache = layer.new_cache(2, 233)
        parts = [layer(x[:, :30], cache=cache)[0]]
        parts += [layer(x[:, t : t + 1], cache=cache)[0] for t in range(30, 230)]
        parts.append(layer(x[:, 230:], cache=cache)[0])
        alone = layer.new_cache(2, 233)
        first = layer(x[:, :1], cache=alone)[0]
    assert torch.allclose(torch.cat(parts, 1), whole, atol=1e-5)
    assert torch.allclose(first, whole[:, :1], atol=1e-5)


@pytest.mark.parametrize("layers", [CAUSAL, BIDIRECTIONAL], ids=["causal", "bidirectional"])
def test_padding_on_the_right_changes_nothing(layers):
    for name, make in layers.items():
        layer = built(make)
        x = torch.randn(1, 64, DIM)
        padded = torch.cat([x, 100 * torch.ones(1, 33, DIM)], 1)
        mask = torch.arange(97)[None] < 64
        with torch.no_grad():
            assert torch.allclose(layer(padded, mask=mask)[0][:, :64], layer(x)[0], atol=1e-5), name


@pytest.mark.parametrize("name", ["lsh", "random", "routing", "local and routing", "local"])
def test_padded_prompts_decode_like_one_padded_pass(name):
    layer = built(CAUSAL[name])
    x, mask = torch.randn(2, 80, DIM), torch.ones(2, 80, dtype=torch.bool)
    mask[0, :13] = False
    with torch.no_grad():
        whole = layer(x, mask=mask)[0]
        cache = layer.new_cache(2, 80)
        parts = [layer(x[:, :20], mask=mask[:, :20], cache=cache)[0]]
        parts += [layer(x[:, t : t + 1], mask=mask[:, t : t + 1], cache=cache)[0] for t in range(20, 80)]
    assert torch.allclose(torch.cat(parts, 1)[mask], whole[mask], atol=1e-5)


@pytest.mark.parametrize("layers", [CAUSAL, BIDIRECTIONAL], ids=["causal", "bidirectional"])
def test_gradients_reach_every_parameter_at_any_length(layers):
    for name, make in layers.items():
        layer = built(make).train()
        for time in (1, 7, 65):
            y, aux = layer(torch.randn(2, time, DIM))
            assert y.shape == (2, time, DIM) and aux.shape == ()
        y, aux = layer(torch.randn(2, 65, DIM))
        (y.square().mean() + aux).backward()
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in layer.parameters()), name


@pytest.mark.parametrize("name", ["dense", "local", "strided", "routing", "random", "lsh"])
def test_bad_inputs(name):
    layer = built(CAUSAL[name])
    x = torch.randn(2, 20, DIM)
    for arguments, message in (
        (dict(x=x[0]), r"x must be \[batch, time, 64\]"),
        (dict(x=x[..., :3]), r"x must be \[batch, time, 64\]"),
        (dict(x=x[:, :0]), "at least one token"),
        (dict(x=x, context=x), "context was given to a layer built with cross=False"),
        (dict(x=x, mask=torch.ones(2, 19, dtype=torch.bool)), r"mask must be \[2, 20\], got \[2, 19\]"),
    ):
        with pytest.raises(ValueError, match=message):
            layer(**arguments)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DenseAttention(30, 4), "dim must be divisible by heads, got 30 and 4"),
        (lambda: DenseAttention(32, 0), "heads must be at least 1"),
        (lambda: LocalAttention(32, 4, 0), "block must be at least 1"),
        (lambda: StridedAttention(32, 3, 4), "heads must be even"),
        (lambda: LSHAttention(32, 4, 3, 8), "buckets must be even"),
        (lambda: RandomRoutingAttention(32, 4, 0, 8), "num_clusters must be at least 1"),
        (lambda: LocalRoutingAttention(32, 4, 0, 8, 4, 8), "local_heads and routing_heads"),
        (lambda: DenseAttention(32, 4, cross=True, mask_self=True), "shared_qk and mask_self"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_cache_of_another_batch_or_of_a_layer_that_is_not_causal():
    for name in ("routing", "local"):
        layer = built(CAUSAL[name])
        with pytest.raises(ValueError, match=r"cache has \[batch, heads\] \[3, 4\], got \[2, 4\]"):
            layer(torch.randn(2, 1, DIM), cache=layer.new_cache(3))
    layer = built(BIDIRECTIONAL["local"])
    with pytest.raises(ValueError, match="only a causal layer"):
        layer(torch.randn(2, 1, DIM), cache=layer.new_cache(2))
