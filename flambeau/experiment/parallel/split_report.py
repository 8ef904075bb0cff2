"""What a run with a split model reports: each function measures some claims and adds its tables and figures."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from flambeau.data import Batches
from flambeau.experiment import language_evaluation as evaluation
from flambeau.experiment.parallel import split_figures as figures
from flambeau.experiment.parallel import split_training as split
from flambeau.files import write_json
from flambeau.models.language import BERT, GPT
from flambeau.training import Trainer
from flambeau.training.parallel import ParallelPlan
from flambeau.training.parallel.cost import TransformerSize
from flambeau.training.parallel.cross_entropy import vocab_parallel_cross_entropy
from flambeau.training.parallel.parity import check_numerics


def split_training(
    run: Any, plan: str, model: nn.Module, batch: Any, alone: Sequence[float] | None, ranks: Sequence[dict[str, Any]]
) -> None:
    """Claims about the result of `train_split` beside `alone`, the losses of the same training in one process."""
    losses = ranks[0]["losses"]
    if alone is None:
        run.unmeasured("loss_gap", why="alone=False: not trained in one process")
    else:
        gap = max(abs(a - b) for a, b in zip(alone, losses, strict=True))
        run.measure("loss_gap", ours=losses[-1], baseline=alone[-1], value=gap)
    whole = sum(parameter.numel() for parameter in model.parameters())
    held = max(rank["memory"][-1]["parameters"] for rank in ranks)
    run.measure("memory", ours=held, baseline=whole, value=held / whole)
    run.table("held by one process", ranks[0]["memory"])
    traffic = {way: ranks[0][way] for way in ("forward", "loss", "backward")}
    if ParallelPlan.from_string(plan).mesh.tp == len(ranks) > 1:
        calls = {way: counted["calls"].get("all_reduce", 0) for way, counted in traffic.items()}
        # Beside the layers', one sum forward is the embedding's and one backward the head's.
        layers = calls["forward"] - calls["loss"] - 1 + calls["backward"] - 1
        run.measure("all_reduces", ours=layers, value=layers / len(model.blocks))
        tokens = batch["targets"].numel() if isinstance(batch, dict) else batch[:, 1:].numel()
        run.measure("loss_traffic", value=traffic["loss"]["bytes"]["all_reduce"] / 4 / tokens)
    else:
        for name in ("all_reduces", "loss_traffic"):
            run.unmeasured(name, why=f"the plan {plan} does more than split layers")
    if ranks[0]["numerics"]:
        run.table("split gradients against one process", ranks[0]["numerics"])
    curves = ({} if alone is None else {"one process": alone}) | {plan: losses}
    report: dict[str, Any] = {"losses": curves, "memory": [rank["memory"] for rank in ranks], "traffic": traffic}
    report["weak_scaling"] = split.weak_scaling_table()
    write_json(run.folder / "report.json", json.loads(json.dumps(report)))
    run.figure("losses", figures.losses_figure(curves))
    run.figure("memory", figures.memory_figure(ranks[0]["memory"], whole))


def trained_gpt(
    run: Any,
    name: str,
    build: Callable[[], GPT],
    *,
    windows: Tensor,
    held_out: Tensor,
    batch_size: int,
    training: Trainer,
) -> tuple[GPT, float]:
    """A GPT trained in this process, and its held-out loss (nats a token)."""
    model = split.seeded_model(build, run.seed).to(run.device)
    training.fit(
        model, split.next_token_loss, Batches(windows, batch_size), folder=run.folder / "train" / name,
        progress=run.progress, seed=run.seed,
    )  # fmt: skip
    with torch.no_grad():
        losses = [split.next_token_loss(model, part.to(run.device)) for part in held_out.split(64)]
    rows = [len(part) for part in held_out.split(64)]
    held = sum(float(loss) * count for loss, count in zip(losses, rows, strict=True)) / len(held_out)
    run.note(f"{name} GPT: {sum(p.numel() for p in model.parameters()):,} parameters, held-out loss {held:.3f} nats.")
    return model, held  # type: ignore[return-value]


def norm_placement(run: Any, depths: Sequence[int], inits: int) -> None:
    """The last layer's gradient before training, by depth, with norms behind the sums and before each part."""
    post, pre = ([split.gradient_at_init(norm, d, run.seed, inits) for d in depths] for norm in ("post", "pre"))
    rows = [{"depth": d, "norms behind": a, "norms before": b} for d, a, b in zip(depths, post, pre, strict=True)]
    run.table("last layer's gradient before training", rows)
    change = max(abs(one / post[0] - 1) for one in post[1:])
    run.measure("post_norm", ours=post[-1], baseline=post[0], value=change)
    run.measure("pre_norm", ours=pre[1], baseline=pre[0], value=pre[0] / pre[1])


def trained_berts(run: Any, build: Callable[..., BERT], data: Any, depths: Sequence[int], training: Trainer) -> None:
    """A table of BERTs with norms before and behind, shallow and deep, after equal steps. Nothing is claimed of it."""
    rows = []
    for depth in depths:
        for norm in ("pre", "post"):
            model = split.seeded_model(partial(build, depth=depth, norm=norm), run.seed).to(run.device)
            fit = training.fit(
                model, split.masked_loss, data, folder=run.folder / "train" / f"bert {depth} {norm}",
                progress=run.progress, seed=run.seed,
            )  # fmt: skip
            last = [entry["loss"] for entry in fit.history[-10:]]
            rows.append({"depth": depth, "norms": norm, "loss, last ten steps": round(sum(last) / len(last), 3)})
    run.table("BERTs trained with either placement of the norms", rows)


def weak_scaling(run: Any) -> None:
    """The paper's weak scaling from sizes and one bandwidth."""
    rows = split.weak_scaling_table()
    run.table("weak scaling, computed", rows)
    alone = [row for row in rows if row["GPUs"] == row["split over"]]
    falls = all(a["efficiency"] > b["efficiency"] for a, b in zip(alone, alone[1:]))
    off = max(abs(row["efficiency"] - row["paper"]) for row in alone)
    run.measure("weak_scaling", value=100 * off if falls else float("inf"))


def pretrained_numerics(run: Any, source: str, plan: str) -> None:
    """Split gradients of a model of transformers, against one process."""
    rows = check_numerics(source, ParallelPlan.from_string(plan).mesh.tp)
    run.table(f"{source} split", rows)
    wrong = [row["tensor"] for row in rows if not row["agrees"]]
    run.note(
        f"{source}: {len(rows)} tensors compared, " + (f"these differ: {', '.join(wrong)}." if wrong else "all agree.")
    )


def gpt_quality(run: Any, model: GPT, tokenizer: Any, wikitext: str | None, lambada: str | None) -> None:
    """WikiText perplexity and LAMBADA accuracy, of the files that are given."""
    if wikitext is None:
        run.unmeasured("wikitext", why="needs wikitext=FILE, WikiText-103's wiki.test.tokens")
    else:
        with open(wikitext, encoding="utf-8") as file:
            run.measure("wikitext", value=evaluation.wikitext_perplexity(model, tokenizer, file.read()))
    if lambada is None:
        run.unmeasured("lambada", why="needs lambada=FILE, lambada_test.jsonl")
    else:
        run.measure("lambada", value=100 * evaluation.cloze_accuracy(model, tokenizer, evaluation.read_cloze(lambada)))


def bert_quality(
    run: Any, build: Callable[[], BERT], tokenizer: Any, length: int, race: str | None, training: Trainer
) -> None:
    """RACE accuracy of a BERT fine-tuned on it."""
    if race is None:
        run.unmeasured("race", why="needs race=FOLDER, the RACE data set with train and test")
        return
    train, test = (evaluation.read_race(f"{race}/{part}", tokenizer, length) for part in ("train", "test"))
    model = evaluation.MultipleChoice(split.seeded_model(build, run.seed)).to(run.device)  # type: ignore[arg-type]
    data = Batches(train, min(8, len(train["labels"])))
    folder = run.folder / "train" / "race"
    training.fit(model, evaluation.choice_loss, data, folder=folder, progress=run.progress, seed=run.seed)
    run.measure("race", value=100 * evaluation.choice_accuracy(model, test))


def gpu(run: Any) -> None:
    """Rate of a GPT cut out of the paper's 1.2B one, and memory of the loss, on one GPU."""
    if run.device.type != "cuda":
        for name in ("gpu_rate", "gpu_loss_memory"):
            run.unmeasured(name, why="no GPU")
        return
    size, batch = TransformerSize(4, 1536, 16), 8
    with run.device:
        model = GPT(size.vocab, size.length, size.width, size.depth, size.heads, dropout=0.0).bfloat16()
        windows = torch.randint(size.vocab, (batch, size.length + 1))
    seconds = []
    for _ in range(8):
        torch.cuda.synchronize()
        began = time.perf_counter()
        split.next_token_loss(model, windows).backward()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    rate = size.flops(batch, recompute=False) / sorted(seconds)[len(seconds) // 2]
    run.measure("gpu_rate", ours=rate, baseline=790e12, value=rate / 790e12)
    del model
    ours, baseline = loss_memory(run.device, 16 * 1024, size.vocab)
    run.measure("gpu_loss_memory", ours=ours, baseline=baseline, value=ours / baseline)


def loss_memory(device: torch.device, tokens: int, vocab: int) -> tuple[int, int]:
    """Peak bytes beyond bf16 logits [tokens, vocab] of the vocabulary-parallel loss and of PyTorch's in fp32."""
    if not dist.is_initialized():
        dist.init_process_group("nccl", store=dist.HashStore(), rank=0, world_size=1)
    targets = torch.randint(vocab, (tokens,), device=device)
    peaks = []
    for loss in (
        lambda logits: vocab_parallel_cross_entropy(logits, targets, dist.group.WORLD, vocab).mean(),
        lambda logits: F.cross_entropy(logits.float(), targets),
    ):
        logits = torch.randn(tokens, vocab, device=device, dtype=torch.bfloat16).requires_grad_()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        loss(logits).backward()
        peaks.append(torch.cuda.max_memory_allocated() - before)
        del logits
    return peaks[0], peaks[1]
