"""The planner's formulas against what autograd saves, and its answers."""

from dataclasses import replace

import pytest

from flambeau.experiment.parallel.context_memory import crossovers, longest, published_ratio, saved_bytes
from flambeau.training.parallel.cost import H200, P100_ARIES, TransformerSize
from flambeau.training.parallel.memory_plan import (
    context_mode,
    elements_as_published,
    largest,
    max_batch,
    max_seq_len,
    saved_elements,
)

BERT_BASE = TransformerSize(12, 768, 12, length=512, vocab=30522)


@pytest.mark.parametrize("attention", ["blockwise", "scores", "linformer:16"])
@pytest.mark.parametrize(("scheme", "ranks"), [("ring", 2), ("ring", 4), ("tensor", 2), ("tensor", 4)])
def test_formula_is_what_autograd_saves(scheme, ranks, attention):
    size = TransformerSize(2, 32, 4, vocab=64)
    for batch, length in ((1, 256), (4, 64)):
        saved = saved_bytes(size, batch, length, ranks, scheme, attention)
        assert 4 * saved_elements(size, batch, length, ranks, scheme, attention) == pytest.approx(saved, rel=0.05)


def test_saved_bytes_of_a_model_fall_with_the_ranks():
    size = TransformerSize(2, 32, 4, vocab=64)
    found = [saved_bytes(size, 1, 512, ranks, "ring") for ranks in (2, 4, 8)]
    assert found[0] / found[1] == pytest.approx(2, rel=0.05) and found[1] / found[2] == pytest.approx(2, rel=0.05)


def test_published_table():
    # 64 ranks by sequence against 12 by heads: 11.9 times fewer activations in a layer of BERT-Base at 512 tokens
    assert published_ratio(BERT_BASE, 64, 12) == pytest.approx(11.85, abs=0.01)
    for tokens, better in ((33 * 768, "ring"), (31 * 768, "tensor")):
        needed = {
            scheme: sum(elements_as_published(1, tokens, 768, 12, 4, scheme)[part] for part in ("mlp", "mlp states"))
            for scheme in ("ring", "tensor")
        }
        assert min(needed, key=needed.get) == better
    measured = crossovers(32, 4)
    assert measured["mlp"] == pytest.approx(32 * 32, rel=0.05)
    assert measured["attention"] == pytest.approx(16 * 32, rel=0.05)


def test_planned_sizes():
    for scheme, ranks in (("ring", 64), ("tensor", 12)):
        batch = max_batch(P100_ARIES, BERT_BASE, ranks, scheme=scheme, attention="scores")
        state = 16 * BERT_BASE.parameters / (1 if scheme == "ring" else ranks)
        needed = [4 * saved_elements(BERT_BASE, b, 512, ranks, scheme, "scores") + state for b in (batch, batch + 1)]
        assert needed[0] <= 0.9 * P100_ARIES.memory < needed[1]
    ring, tensor = max_batch(P100_ARIES, BERT_BASE, 64), max_batch(P100_ARIES, BERT_BASE, 12, scheme="tensor")
    assert ring > 8 * tensor
    long = [max_seq_len(P100_ARIES, BERT_BASE, ranks, attention="linformer:256") for ranks in (16, 32)]
    assert long[1] == pytest.approx(2 * long[0], rel=0.1)
    dense = [max_seq_len(P100_ARIES, BERT_BASE, ranks, attention="scores") for ranks in (16, 32)]
    assert dense[1] < 1.6 * dense[0]
    sharded = max_seq_len(P100_ARIES, BERT_BASE, 32, shard_states=True)
    assert sharded > max_seq_len(P100_ARIES, BERT_BASE, 32)
    assert max_seq_len(replace(P100_ARIES, memory=1e6), BERT_BASE, 4) == 0
    size = TransformerSize(2, 16, 2, vocab=64)
    assert longest(size, 2, "ring", "blockwise", 2**19) > 1.8 * longest(size, 1, "ring", "blockwise", 2**19)
    assert [largest(lambda n, most=most: n <= most) for most in (0, 1, 6, 1000)] == [0, 1, 6, 1000]


def test_mode_of_attention():
    sizes = TransformerSize(32, 4096, 32, vocab=1000)
    assert context_mode(H200, sizes, 16, batch=1, length=2**14) == "ulysses"  # hops stick out of short products
    assert context_mode(H200, sizes, 16, batch=1, length=2**20) == "blockwise"
    assert context_mode(H200, replace(sizes, heads=20), 16, batch=1, length=2**14) == "blockwise"


def test_bad_arguments():
    for arguments, message in (
        ((BERT_BASE, 1, 64, 2, "diagonal"), "scheme must be"),
        ((BERT_BASE, 1, 64, 2, "ring", "linformer"), "attention must be"),
    ):
        with pytest.raises(ValueError, match=message):
            saved_elements(*arguments)
    with pytest.raises(ValueError, match="12 heads and 8 ranks"):
        max_batch(P100_ARIES, BERT_BASE, 8, scheme="tensor")
    with pytest.raises(ValueError, match="ranks and batch"):
        max_seq_len(P100_ARIES, BERT_BASE, 0)
