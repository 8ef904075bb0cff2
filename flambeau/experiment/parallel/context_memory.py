"""What one rank keeps for backward when a BERT is split by sequence or by heads, measured at the rank's own shapes."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from flambeau.models.language import BERT
from flambeau.models.language.transformer import MLP, SelfAttention
from flambeau.nn import Loopback
from flambeau.nn.attention.core import AttentionSpec, LinformerCore
from flambeau.ops.saved_tensors import SavedTensors
from flambeau.training.parallel.context_parallel import Context, ContextAttention
from flambeau.training.parallel.cost import P100_ARIES, TransformerSize
from flambeau.training.parallel.memory_plan import (
    STATE_BYTES,
    elements_as_published,
    largest,
    max_batch,
    max_seq_len,
)
from flambeau.training.parallel.plan import ContextSpec

SCHEMES = ("ring", "tensor")
MODES: dict[str, Any] = {"scores": "two_phase", "blockwise": "blockwise"}


def saved_bytes(
    size: TransformerSize, batch: int, length: int, ranks: int, scheme: str, attention: str = "blockwise"
) -> int:
    """Bytes, without parameters, that one of `ranks` ranks saves in a forward of `batch` sequences of `length` tokens.

    The rank exists alone: layers have the rank's widths, and a ring gives it back what it sends, so that shapes and
    saved tensors are those of a real rank. scheme: "ring" or "tensor". attention: "blockwise", "scores" or
    ``"linformer:K"``.
    """
    positions = -(-length // ranks) if scheme == "ring" else length
    model = BERT(size.vocab, length, size.width, size.depth, size.heads, hidden=size.hidden, dropout=0.0)
    if attention.startswith("linformer"):
        AttentionSpec.from_string(attention).apply(model, length)
    if scheme == "tensor":
        for block in model.blocks:
            narrow(block.attention, block.mlp, ranks)
        model.head = nn.Linear(size.width, -(-size.vocab // ranks))
    context = Context(Loopback(ranks if scheme == "ring" else 1), ContextSpec(mode=MODES.get(attention, "blockwise")))
    context.begin(length)
    for block in model.blocks:
        core = block.attention.core
        if isinstance(core, LinformerCore):
            core.context = lambda: (None, context.positions())
        else:
            block.attention.core = ContextAttention(core, context)
    tokens = torch.zeros(batch, positions, dtype=torch.int64)
    with SavedTensors(exclude=model.parameters()) as saved:
        losses = model.token_losses(tokens, tokens, positions=torch.arange(positions)[None])
    assert losses.requires_grad
    return saved.bytes


def narrow(attention: SelfAttention, mlp: MLP, ranks: int) -> None:
    """Layers of the widths that one tensor-parallel rank has, in place."""
    width, hidden = attention.qkv.in_features, mlp.up.out_features
    attention.qkv = nn.Linear(width, 3 * width // ranks)
    attention.out = nn.Linear(width // ranks, width)
    mlp.up, mlp.down = nn.Linear(width, hidden // ranks), nn.Linear(hidden // ranks, width)


def longest(size: TransformerSize, ranks: int, scheme: str, attention: str, budget: int, step: int = 64) -> int:
    """Longest sequence, a multiple of `step`, of which a rank saves at most `budget` bytes."""
    return step * largest(lambda n: saved_bytes(size, 1, step * n, ranks, scheme, attention) <= budget)


def widest(size: TransformerSize, ranks: int, scheme: str, attention: str, budget: int, length: int) -> int:
    """Most sequences of `length` tokens of which a rank saves at most `budget` bytes."""
    return largest(lambda batch: saved_bytes(size, batch, length, ranks, scheme, attention) <= budget)


def crossovers(width: int, ranks: int) -> dict[str, float]:
    """Tokens from which splitting the sequence needs less memory than splitting the layer, by part of a block.

    Measured: saved bytes, and 16 bytes for each parameter (weight, gradient, Adam's moments), of an MLP and of a
    self-attention. Both grow in proportion to the tokens, so two sizes give the crossing. Rows of scores, of the same
    size either way, are left out by attending within pieces of 8 tokens.
    """
    found = {}
    for part in ("mlp", "attention"):
        needed = {scheme: [_part_bytes(part, scheme, width, ranks, n) for n in (64, 128)] for scheme in SCHEMES}
        slopes = {scheme: (large - small) / (64 * 8) for scheme, (small, large) in needed.items()}
        starts = {scheme: needed[scheme][0] - 64 * 8 * slopes[scheme] for scheme in SCHEMES}
        found[part] = (starts["ring"] - starts["tensor"]) / (slopes["tensor"] - slopes["ring"])
    return found


def _part_bytes(part: str, scheme: str, width: int, ranks: int, batch: int) -> int:
    attention, mlp = SelfAttention(width, ranks, causal=False, dropout=0.0), MLP(width, 4 * width)
    if scheme == "tensor":
        narrow(attention, mlp, ranks)
    module: Any = mlp if part == "mlp" else attention
    rows = batch // ranks if scheme == "ring" else batch  # rows stand for tokens: the rank has a part of them
    x = torch.zeros(rows, 8, width, requires_grad=True)
    with SavedTensors(exclude=module.parameters()) as saved:
        module(x)
    return saved.bytes + STATE_BYTES * sum(parameter.numel() for parameter in module.parameters())


def planned_rows(size: TransformerSize, ring: int = 64, tensor: int = 12) -> list[dict[str, Any]]:
    """What the planner gives for a model on P100s, by sequence over `ring` of them and by heads over `tensor`."""
    plans: list[tuple[str, Any, dict[str, int]]] = [
        (f"batch, {size.length} tokens", max_batch, {"length": size.length}),
        ("length, batch 64", max_seq_len, {"batch": 64}),
    ]
    rows = []
    for what, plan, options in plans:
        for attention in ("scores", "blockwise", "linformer:256"):
            by_heads = plan(P100_ARIES, size, tensor, scheme="tensor", attention=attention, **options)
            by_sequence = plan(P100_ARIES, size, ring, attention=attention, **options)
            row = {"BERT-Base, P100": f"{what}, {attention}", f"tensor, {tensor}": by_heads}
            rows.append(row | {f"ring, {ring}": by_sequence, "ratio": by_sequence / max(1, by_heads)})
    return rows


def published_ratio(size: TransformerSize, ring: int, tensor: int) -> float:
    """Activations of a layer under "tensor" over those under "ring", from the paper's table."""
    totals = []
    for ranks, scheme in ((tensor, "tensor"), (ring, "ring")):
        parts = elements_as_published(1, size.length, size.width, size.heads, ranks, scheme)  # type: ignore[arg-type]
        totals.append(parts["mlp"] + parts["attention"])
    return totals[0] / totals[1]
