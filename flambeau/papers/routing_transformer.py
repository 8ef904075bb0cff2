"""Routing Transformer: attention inside clusters of content, found by online k-means."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from flambeau.data import pydoc_text
from flambeau.data.recall import Recall
from flambeau.data.text.corpora import byte_corpus, corpus
from flambeau.experiment import Claim, experiment
from flambeau.experiment.attention.cost import measure_cost
from flambeau.experiment.attention.language import measure_language
from flambeau.experiment.attention.recall import measure_recall, train_recall
from flambeau.experiment.attention.routed_pretrained import measure_pretrained
from flambeau.models.language.routing_transformer import RoutingTransformerLM
from flambeau.nn.attention import DenseAttention, LocalAttention, RandomRoutingAttention, RoutingAttention
from flambeau.symbolic import symbolize
from flambeau.training import OneCycle, Trainer, WarmupCosine

# fmt: off
CLAIMS = [
    Claim("causal", "recall beyond the window, 256 tokens: routing, causal selection", at_least=0.90),
    Claim("balanced", "the same: routing, selection as published", at_least=0.88),
    Claim("local", "the same: local attention, two blocks of 32 (chance 0.06)", at_most=0.10),
    Claim("random", "the same: random clusters", paper="random worse than routing (CIFAR-10)", at_most=0.55),
    Claim("full", "the same: full attention", at_least=0.99),
    Claim("products", "multiply-adds of routing over those of full attention, at 256 tokens",
          paper="O(n^1.5) for O(n^2)", at_most=0.3),
    Claim("largest_cluster", "largest share of the tokens in one cluster of a head, causal selection"),
    Claim("seconds", "forward and backward at the longest sequence: full attention over causal routing", unit="x"),
    Claim("bytes", "kept for the backward at the longest sequence: causal routing over fused full attention", unit="x"),
    Claim("leak", "balanced selection: earlier outputs that change when the last quarter of the tokens does"),
    Claim("likelihood_gap", "balanced selection: bits a byte by step-by-step decoding, less those of one pass",
          unit="bits"),
    Claim("language", "bits a byte of local and routing heads, less those of local heads alone, after a short training",
          paper="WikiText-103 perplexity 15.8 for 18.3 (Transformer-XL)", unit="bits"),
    Claim("own_language", "own text: bits a token of local and routing heads, less those of local heads", unit="bits"),
    Claim("own_word_perplexity", "own text: test perplexity a word of local and routing heads",
          paper="WikiText-103 15.8, PG-19 33.2"),
    Claim("own_model", "own model: bits a token with routing heads, less those of the model trained on as long",
          unit="bits"),
    Claim("gpu_speed", "32768 tokens, 8 heads of 64, window 512, bf16, forward and backward: flash attention over "
          "causal routing", unit="x", at_least=4.0, needs="gpu"),
]
ADAM = symbolize(torch.optim.Adam)
PRESETS = {
    "smoke": {
        "training.steps": 2, "sequences": 4, "batch_size": 4, "lengths": (128,), "context": 32, "language.window": 16,
        "language_training.steps": 2, "language.dim": 16, "language.depth": 2, "language.local_window": 16,
    },
    "paper": {
        "data": "wikitext-103/", "context": 4096, "language_batch": 1,
        "language": symbolize(RoutingTransformerLM).partial(
            dim=1024, depth=14, local_heads=8, routing_heads=8, num_clusters=8, window=512, local_window=256,
            embedding_dim=256, dropout=0.4, token_dropout=0.25, rank_bias=False,
        ),
        "language_training": symbolize(Trainer)(
            steps=400000, optimizer=symbolize(torch.optim.Adafactor).partial(lr=0.01),
            precision="bf16", accumulate=8,  # the optimiser's own rate falls with 1 / sqrt(step) after 10000 steps
        ),
    },
}
# fmt: on


@experiment("routing_transformer", claims=CLAIMS, presets=PRESETS)
def run(
    run: Any,
    *,
    task: Recall = symbolize(Recall)(),
    dim: int = 64,
    heads: int = 4,
    num_clusters: int = 8,
    window: int = 32,
    decay: float = 0.99,
    commitment: float = 1e-2,
    batch_size: int = 32,
    sequences: int = 128,
    training: Trainer = symbolize(Trainer)(steps=300, optimizer=ADAM.partial(lr=2e-3), schedule=symbolize(OneCycle)()),
    lengths: tuple[int, ...] = (1024, 2048, 4096, 8192),
    data: str | None = None,
    language: Callable[..., RoutingTransformerLM] = symbolize(RoutingTransformerLM).partial(
        dim=128, depth=4, local_heads=2, routing_heads=2, num_clusters=16, window=64, local_window=64, routing_layers=2
    ),
    context: int = 1024,
    language_batch: int = 2,
    language_training: Trainer = symbolize(Trainer)(
        steps=40, optimizer=ADAM.partial(lr=3e-3), schedule=symbolize(WarmupCosine)(), clip=1.0
    ),
    model: str | None = None,
) -> None:
    """Find again what lies beyond the window, at a fraction of full attention's cost; model text with routing heads.

    task: the recall task.
    dim: channels of the recall network.
    heads: of its one attention layer.
    num_clusters: centroids a head.
    window: tokens a cluster; also the block of local attention.
    decay: of the centroids' moving average.
    commitment: weight of the pull of queries to their centroids.
    batch_size: sequences a step of the recall network.
    sequences: fresh ones it is tested on.
    training: of the recall networks.
    lengths: of the sequences whose cost is measured.
    data: a text file, or a folder of WikiText-103 or PG-19; the language models are then trained on it, alone.
    language: the language model.
    context: tokens it sees.
    language_batch: sequences a step.
    language_training: of the language models.
    model: "hf:FOLDER" or "hf:NAME", a transformers causal LM whose top half of layers gets routing heads and is trained
        on; needs data.
    """
    lm: dict[str, Any] = dict(context=context, batch_size=language_batch, trainer=language_training)
    if data is not None:
        if model is not None:
            measure_pretrained(run, model, data, **lm)
        else:
            measure_language(run, corpus(data), language, own=True, **lm)
        for claim in CLAIMS:
            if claim.name not in run.outcomes:
                run.unmeasured(claim.name, why="this run was about data=" + data)
        return
    if model is not None:
        raise ValueError("model needs data=FILE, the text that it is trained on")
    for name in ("own_language", "own_word_perplexity", "own_model"):
        run.unmeasured(name, why="needs data=FILE model=hf:FOLDER" if name == "own_model" else "needs data=FILE")

    routing: dict[str, Any] = dict(decay=decay, commitment=commitment, mask_self=True, scale=1.0)
    same: dict[str, Any] = dict(shared_qk=True, qk_norm=True, mask_self=True, scale=1.0)
    kinds: dict[str, Callable[[], nn.Module]] = {
        "full": lambda: DenseAttention(dim, heads, **same),
        "causal": lambda: RoutingAttention(dim, heads, num_clusters, window, **routing),
        "balanced": lambda: RoutingAttention(dim, heads, num_clusters, window, selection="balanced", **routing),
        "random": lambda: RandomRoutingAttention(dim, heads, num_clusters, window, **same),
        "local": lambda: LocalAttention(dim, heads, window),
    }
    recalled = {
        name: train_recall(
            make, task, training, dim=dim, batch_size=batch_size, sequences=sequences, seed=run.seed,
            device=run.device, folder=run.folder / "train" / name, progress=run.progress,
        )
        for name, make in kinds.items()
    }  # fmt: skip
    measure_recall(run, task, recalled, sequences)
    measure_cost(run, lengths)
    text = byte_corpus("pydoc", np.frombuffer(pydoc_text().encode(), dtype=np.uint8).copy())
    measure_language(run, text, language, own=False, **lm)
