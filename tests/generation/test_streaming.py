"""Streaming follows the model's own distribution and goes on where it stopped."""

import pytest
import torch

from flambeau.generation.streaming import stream
from flambeau.models.language.routing_transformer import RoutingTransformerLM


def model():
    torch.manual_seed(0)
    network = RoutingTransformerLM(
        11, dim=32, depth=2, local_heads=1, routing_heads=1, num_clusters=2, window=16, local_window=16
    )
    for parameter in network.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return network.eval()


def test_greedy_streaming_is_the_argmax_of_one_pass():
    network, prompt = model(), torch.randint(11, (3, 5))
    tokens = stream(network, prompt, 40, temperature=0)
    with torch.no_grad():
        assert torch.equal(network(tokens)[:, 4:-1].argmax(-1), tokens[:, 5:])


def test_a_cache_goes_on():
    network, prompt = model(), torch.randint(11, (2, 5))
    whole = stream(network, prompt, 30, temperature=0)
    cache = network.new_cache(2)
    first = stream(network, prompt, 10, temperature=0, cache=cache)
    second = stream(network, first[:, -1:], 20, temperature=0, cache=cache)
    assert torch.equal(torch.cat([first, second[:, 1:]], 1), whole)


def test_samples_have_the_models_frequencies_and_the_generator_decides():
    network = model()
    prompt = torch.full((4000, 1), 3)
    tokens = stream(network, prompt, 1, generator=torch.Generator().manual_seed(0))
    again = stream(network, prompt, 1, generator=torch.Generator().manual_seed(0))
    expected = network(prompt[:1])[0, 0].softmax(-1)
    counts = torch.bincount(tokens[:, 1], minlength=11) / 4000
    assert torch.equal(tokens, again) and (counts - expected).abs().max() < 0.03
    allowed = network(prompt[:1])[0, 0].topk(2).indices
    assert set(stream(network, prompt[:200], 1, top_k=2)[:, 1].tolist()) <= set(allowed.tolist())


def test_bad_arguments():
    with pytest.raises(ValueError, match="at least one token"):
        stream(model(), torch.zeros(2, 0, dtype=torch.long), 3)
    with pytest.raises(ValueError, match="max_new_tokens must be at least 1"):
        stream(model(), torch.zeros(2, 1, dtype=torch.long), 0)
    with pytest.raises(ValueError, match="top_p must lie"):
        stream(model(), torch.zeros(2, 1, dtype=torch.long), 3, top_p=2.0)
