"""Whole models over parts of sequences: the same loss and gradients as in one process."""

import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
import context_workers as w

from flambeau.models.language import BERT, GPT
from flambeau.nn.attention.core import AttentionSpec
from flambeau.training.parallel import run_processes
from flambeau.training.parallel.context_parallel import context_parameters

NAMES = ("models", "round_trip")
OPTIONAL = ("transformers_models",) if find_spec("transformers") else ()
SIZES = {2: (*NAMES, *OPTIONAL, "mistakes", "sharded", "dropout"), 3: NAMES}


@cache
def all_sizes():
    return run_processes(w.everything, max(SIZES), SIZES)


def spread(ranks):
    """What each of so many ranks found; all numbers of ranks share one start of the processes."""
    return [result[ranks] for result in all_sizes()[:ranks]]


@pytest.mark.parametrize("ranks", SIZES)
def test_gradients_of_whole_models(ranks):
    results = spread(ranks)
    cases = {case: max(result["models"][case] for result in results) for case in results[0]["models"]}
    assert len(cases) == 24 + (4 if 4 % ranks == 0 else 2)
    assert {case: error for case, error in cases.items() if not error <= 1e-9} == {}


def test_gradients_of_transformers_models():
    pytest.importorskip("transformers", reason="transformers is not installed")
    found = [result["transformers_models"] for result in spread(2)]
    cases = {case: max(result[case] for result in found) for case in found[0]}
    assert len(cases) == 16
    # Llama's norms and rotary angles are computed in float32 whatever the weights
    assert {case: error for case, error in cases.items() if not error <= 1e-6} == {}


@pytest.mark.parametrize("ranks", SIZES)
def test_cutting_and_joining(ranks):
    for result in spread(ranks):
        assert all(result["round_trip"].values()), result["round_trip"]


def test_sharded_parameters_and_recomputation():
    assert max(result["sharded"] for result in spread(2)) < 1e-9


def test_dropout():
    results = spread(2)
    assert max(result["dropout"]["outside"] for result in results) <= 1e-9
    for region in ("blocks", "input"):
        first, second = [result["dropout"]["masks"][region] for result in results]
        # calls in order: embedding, then attention and MLP of the first block
        for position, (one, other) in enumerate(zip(first, second, strict=True)):
            agree = (one == other).double().mean().item()
            if region == "blocks" and position == 0:
                assert agree == 1
            else:
                assert abs(agree - 0.52) < 0.1


def test_what_cannot_be_spread():
    expected = (
        "no attention that could be spread",
        "lists of blocks",
        "norm.weight is also used inside",
        "same number of tokens, got [4, 5]",
        "batch must be a tensor",
        "batch must hold a tensor",
        "only evens out causal",
    )
    for result in spread(2):
        for message, part in zip(result["mistakes"], expected, strict=True):
            assert part in message


def test_attention_specs():
    assert AttentionSpec.from_string("window:12") == AttentionSpec("window", 12)
    assert AttentionSpec.from_string("dense") == AttentionSpec()
    for text in ("window", "dense:3", "linformer:0", "ring"):
        with pytest.raises(ValueError, match="attention"):
            AttentionSpec.from_string(text)
    causal = GPT(11, 8, width=8, depth=1, heads=2)
    with pytest.raises(ValueError, match="causal"):
        AttentionSpec("linformer", 4).apply(causal, 8)
    with pytest.raises(ValueError, match="no AttentionCore"):
        AttentionSpec("window", 4).apply(torch.nn.Linear(2, 2), 8)
    # A window as wide as the sequence is dense attention; a future token does not reach a causal window.
    tokens = torch.randint(0, 11, (2, 8), generator=torch.Generator().manual_seed(0))
    before = causal.eval()(tokens)
    AttentionSpec("window", 8).apply(causal, 8)
    assert torch.allclose(causal.eval()(tokens), before, atol=1e-6)
    AttentionSpec("window", 3).apply(causal, 8)
    changed = tokens.clone()
    changed[:, 5] = (changed[:, 5] + 1) % 11
    difference = (causal.eval()(tokens) - causal(changed)).abs().amax((0, 2))
    assert (difference[:5] == 0).all() and (difference[5:8] > 0).all()
    bert = BERT(11, 8, width=8, depth=1, heads=2)
    AttentionSpec("linformer", 4).apply(bert, 8)
    assert bert(tokens)[0].shape == (2, 8, 11)
    assert context_parameters(bert) == []
