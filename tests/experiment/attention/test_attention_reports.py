"""The figures about attention: products by hand equal products counted, the leak, and likelihoods."""

import math

import pytest
import torch

from flambeau.data.text.corpora import Corpus
from flambeau.experiment.attention.cost import (
    cost_rows,
    counted_products,
    routing_products,
    saved_bytes,
    square_root_routing,
)
from flambeau.experiment.attention.language import divergence_rows, stepwise_nats, word_perplexity
from flambeau.experiment.attention.recall import changed_by_the_future
from flambeau.models.language.routing_transformer import RoutingTransformerLM
from flambeau.nn import DenseAttention, RoutingAttention
from flambeau.ops.gathered_attention.benchmark import cases


@pytest.mark.parametrize("selection", ["causal", "balanced"])
def test_products_by_hand_are_those_counted(selection):
    for time, clusters, window in ((256, 8, 32), (512, 16, 16)):
        layer = RoutingAttention(64, 4, clusters, window, selection=selection).eval()
        counted = counted_products(layer, torch.randn(1, time, 64))
        assert counted == 4 * routing_products(time, 16, clusters, window, selection)
        dense = counted_products(DenseAttention(64, 4), torch.randn(1, time, 64))
        assert dense == 4 * routing_products(time, 16, clusters, window, selection, dense=True)


def test_routing_grows_with_the_power_of_three_halves_and_full_attention_with_the_square():
    products = {time: counted_products(square_root_routing(time, 16, 1, "causal"), torch.randn(1, time, 16))
                for time in (1024, 4096, 16384)}  # fmt: skip
    for shorter, longer in ((1024, 4096), (4096, 16384)):
        assert math.log(products[longer] / products[shorter], 4) == pytest.approx(1.5, abs=0.02)
    kept = {time: saved_bytes(square_root_routing(time, 16, 1, "causal"), torch.randn(1, time, 16))
            for time in (256, 1024, 4096)}  # fmt: skip
    assert kept[4096] / kept[1024] < 4**1.5 and kept[1024] / kept[256] < 4**1.5


def test_cost_rows_name_every_layer_at_every_length():
    def layers(time):
        return {"full": DenseAttention(16, 1), "causal": square_root_routing(time, 16, 1, "causal")}

    rows = cost_rows(layers, (64, 128), dim=16, repeats=1)
    assert [(row["tokens"], row["attention"]) for row in rows] == [
        (64, "full"), (64, "causal"), (128, "full"), (128, "causal")
    ]  # fmt: skip
    assert all(row["ms"] > 0 and row["MB for backward"] > 0 for row in rows)


def test_the_leak_is_that_of_balanced_selection():
    torch.manual_seed(0)
    x = torch.randn(4, 64, 32)
    leaks = {
        name: changed_by_the_future(RoutingAttention(32, 2, 4, 16, selection=name).eval(), x)
        for name in ("causal", "balanced")
    }
    assert leaks["causal"] == 0 and leaks["balanced"] > 0.1


def test_likelihoods_by_one_pass_and_by_steps():
    gaps = {}
    for selection in ("causal", "balanced"):
        torch.manual_seed(0)
        model = RoutingTransformerLM(
            13, dim=32, depth=2, local_heads=1, routing_heads=1, num_clusters=4, window=8, local_window=8,
            selection=selection,
        ).eval()  # fmt: skip
        for parameter in model.parameters():
            parameter.data.add_(0.3 * torch.randn_like(parameter))
        at_once, by_steps = stepwise_nats(model, torch.randint(13, (2, 65)), "cpu")
        gaps[selection] = abs(at_once - by_steps)
    assert gaps["causal"] < 1e-5 < 1e-3 < gaps["balanced"]
    rows = divergence_rows(model, torch.randint(13, (2, 64)))
    assert len(rows) == 2 and all(0 <= row["local, routing"] <= math.log(2) for row in rows)


def test_word_perplexity_counts_words():
    tokens = torch.zeros(50, dtype=torch.uint8)
    corpus = Corpus("x", tokens, tokens, tokens, 256, "byte", test_words=10)
    assert word_perplexity(math.log(3) / 5, corpus) == pytest.approx(3.0)


def test_the_benchmark_runs():
    for case in cases((64,), dim=8):
        assert [function().shape for function in case.functions.values()][1] == (1, 1, 64, 8)
