"""Sequence parallelism: sequences that no single device holds, with attention around a ring."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from flambeau.data.text.masked_language import MaskedLanguage
from flambeau.data.text.plain import pydoc_text, text_file
from flambeau.experiment import Claim, experiment
from flambeau.experiment.parallel import context_figures as figures
from flambeau.experiment.parallel import context_memory as memory
from flambeau.experiment.parallel.context_gpu import gpu_memory, gpu_speed
from flambeau.experiment.parallel.context_runs import cost_tables, loss_of, spread
from flambeau.experiment.parallel.context_vocabulary import encode
from flambeau.models.language import BERT
from flambeau.nn.attention.core import AttentionSpec
from flambeau.symbolic import symbolize
from flambeau.training import Trainer
from flambeau.training.parallel.cost import TransformerSize
from flambeau.training.parallel.launch import run_processes
from flambeau.training.parallel.plan import ParallelPlan

# fmt: off
CLAIMS = [
    Claim("length_2_heads", "longest sequence over 4 ranks, against tensor parallelism over the 2 that 2 heads allow; "
          "scores kept", paper="3.0x (BERT-Base, 64 P100, tensor parallelism over 12)", unit="x", at_least=1.35),
    Claim("batch_2_heads", "largest batch of 128 tokens, the same", paper="13.7x", unit="x", at_least=2.0),
    Claim("length_2_heads_blockwise", "longest sequence, the same without keeping scores", unit="x", at_least=2.0),
    Claim("length_4_heads_blockwise", "longest sequence, 4 heads and 4 ranks both ways, no scores kept",
          unit="x", at_least=1.4),
    Claim("length_4_heads", "longest sequence, 4 heads and 4 ranks both ways; kept scores fill memory either way",
          unit="x"),
    Claim("linformer_growth", "longest sequence with Linformer over 4 ranks, against 2", paper="grows with the ranks",
          unit="x", at_least=1.8, at_most=2.2),
    Claim("scores_growth", "longest sequence with all scores kept over 4 ranks, against 2", unit="x", at_most=1.6),
    Claim("crossover", "tokens from which splitting the sequence needs less memory than splitting the MLP, over "
          "32 times the width", paper="BL > 32 H", at_least=0.9, at_most=1.1),
    Claim("convergence", "largest difference of the training loss from one process", unit="nats", at_most=5e-4),
    Claim("gpu_memory", "peak memory of attention to 131,072 tokens, over 8 times that of 16,384; 8 ranks in turn, "
          "bf16, BERT-Base", unit="x", at_most=1.3, needs="gpu"),
    Claim("gpu_speed", "speed of a rank's attention, forward and backward, against PyTorch's flash kernel",
          unit="x", at_least=0.4, needs="gpu"),
]
PRESETS = {
    "smoke": {"budget_mib": 0.5, "width": 16, "batch_size": 2, "length": 16, "ranks": 2, "hops": 1,
              "region": "input", "training.steps": 2},
    "paper": {"data": "wikipedia.txt", "tokenizer": "bert-base-uncased/tokenizer.json", "width": 768, "depth": 12,
              "heads": 12, "length": 114688, "batch_size": 4, "ranks": 32, "attention": "linformer:256",
              "region": "input", "baseline": False,
              "training.steps": 1000, "training.optimizer": symbolize(torch.optim.Adam).partial(lr=1e-4)},
}
# fmt: on
RANKS, BATCH_LENGTH, BERT_BASE = 4, 128, TransformerSize(12, 768, 12, length=512, vocab=30522)


@experiment("sequence_parallelism", claims=CLAIMS, presets=PRESETS)
def run(
    run: Any,
    *,
    data: str | None = None,
    tokenizer: str | None = None,
    model: str | None = None,
    width: int = 64,
    depth: int = 2,
    heads: int = 4,
    length: int = 128,
    batch_size: int = 8,
    ranks: int = 4,
    mode: str = "blockwise",
    region: str = "blocks",
    attention: str = "dense",
    training: Trainer = symbolize(Trainer)(steps=40),
    baseline: bool = True,
    budget_mib: float = 16.0,
    hops: int = 20,
) -> None:
    """Measure what fits when sequences are split over ranks, and train a BERT that way and in one process.

    data: a text file; Python's documentation if none is given.
    tokenizer: a tokenizer.json of the tokenizers library; bytes if none is given.
    model: "hf:FOLDER", a transformers masked language model to train instead of a new BERT.
    width: of the BERT.
    depth: its blocks.
    heads: its attention heads.
    length: tokens of a sequence.
    batch_size: sequences a step.
    ranks: processes that share each sequence; under torchrun, all there are.
    mode: how attention is completed: blockwise, two_phase or ulysses.
    region: where sequences are cut: around the blocks, or at the input, which also divides embedding and head.
    attention: of the BERT that is trained: dense, window:W or linformer:K.
    training: the loop, in one process and over the ranks.
    baseline: train in one process as well; turn it off if the sequences do not fit there.
    budget_mib: saved activations a rank may have in the table of what fits.
    hops: messages that are timed.
    """
    plan = ParallelPlan.from_string(f"cp{ranks}, {mode}, {region}")
    stream, vocab, special = encode(text_file(data) if data else pydoc_text(), tokenizer)
    batches = MaskedLanguage(stream, length, batch_size, vocab, **special)
    torch.manual_seed(run.seed)
    if model is None:
        network: nn.Module = BERT(vocab + (0 if special else 2), length, width, depth, heads, dropout=0.0)
        AttentionSpec.from_string(attention).apply(network, length)
    else:
        network = _transformers_model(model, attention, region)

    budget = round(budget_mib * 2**20)
    _capacity(run, width, budget)
    crossing = memory.crossovers(width, RANKS)
    run.measure("crossover", ours=crossing["mlp"], baseline=32 * width, value=crossing["mlp"] / (32 * width))
    run.note(f"Attention's crossing: {crossing['attention']:.0f} tokens; the paper's formula gives {16 * width}.")

    folder = run.folder / "train"
    results = run_processes(spread, ranks, network, training, batches, run.seed, str(folder), plan, hops)
    ours = results[0]["losses"]
    curves = {f"{ranks} ranks": ours}
    if baseline:
        alone = training.fit(
            network, loss_of(network), batches, folder=folder / "one", progress=run.progress, seed=run.seed
        )
        whole = [entry["loss"] for entry in alone.history]
        curves = {"one process": whole} | curves
        gap = max(abs(a - b) for a, b in zip(ours, whole, strict=True))
        run.measure("convergence", ours=ours[-1], baseline=whole[-1], value=gap)
    else:
        run.unmeasured("convergence", why="baseline=False: nothing was trained in one process")
    run.figure("losses", figures.losses_figure(curves))
    for name, rows in cost_tables(results, batch_size * length, width).items():
        run.table(name, rows)
    if run.device.type != "cuda":
        run.unmeasured("gpu_memory", why="no GPU")
        run.unmeasured("gpu_speed", why="no GPU")
        return
    small, large = (gpu_memory(tokens, 8, run.device) for tokens in (16384, 131072))
    run.measure("gpu_memory", ours=large, baseline=8 * small, value=large / (8 * small))
    ring, flash = gpu_speed(16384, run.device)
    run.measure("gpu_speed", ours=ring, baseline=flash, value=flash / ring)


def _capacity(run: Any, width: int, budget: int) -> None:
    """What fits into a rank's budget here, and by plan on the paper's machine."""
    two, four = (TransformerSize(2, width, heads, vocab=258) for heads in (2, 4))
    rows = []
    cases: list[tuple[str, str, TransformerSize, str, bool]] = [
        ("length_2_heads", "length, 2 heads, scores kept", two, "scores", False),
        ("batch_2_heads", "batch, 2 heads, scores kept", two, "scores", True),
        ("length_2_heads_blockwise", "length, 2 heads, blockwise", two, "blockwise", False),
        ("length_4_heads_blockwise", "length, 4 heads, blockwise", four, "blockwise", False),
        ("length_4_heads", "length, 4 heads, scores kept", four, "scores", False),
    ]
    with run.progress("what fits", len(cases) + 2) as task:
        for name, case, size, kind, is_batch in cases:
            fitted = {}
            for scheme, ranks in (("tensor", size.heads), ("ring", RANKS)):
                if is_batch:
                    fitted[scheme] = memory.widest(size, ranks, scheme, kind, budget, BATCH_LENGTH)
                else:
                    fitted[scheme] = memory.longest(size, ranks, scheme, kind, budget)
            ratio = fitted["ring"] / max(1, fitted["tensor"])
            run.measure(name, ours=fitted["ring"], baseline=fitted["tensor"], value=ratio)
            rows.append({"case": case, "tensor ranks": size.heads, "ring ranks": RANKS, **fitted, "ratio": ratio})
            task.advance()
        for name, kind in (("linformer_growth", "linformer:64"), ("scores_growth", "scores")):
            small, large = (memory.longest(four, ranks, "ring", kind, budget) for ranks in (RANKS // 2, RANKS))
            run.measure(name, ours=large, baseline=small, value=large / max(1, small))
            task.advance()
    run.table("what fits", rows)
    run.figure("capacity", figures.capacity_figure(rows, budget))
    run.table("planned", memory.planned_rows(BERT_BASE))
    ratio = memory.published_ratio(BERT_BASE, ring=64, tensor=12)
    run.note(f"Activations of a layer by the paper's own table, tensor over 12 against ring over 64: {ratio:.1f}x.")


def _transformers_model(name: str, attention: str, region: str) -> nn.Module:
    if not name.startswith("hf:"):
        raise ValueError(f'model must be "hf:FOLDER", got {name!r}')
    if attention != "dense" or region != "blocks":
        raise ValueError(f"model={name} needs attention dense and region blocks, got {attention!r} and {region!r}")
    from transformers import AutoModelForMaskedLM

    return AutoModelForMaskedLM.from_pretrained(name.removeprefix("hf:"))
