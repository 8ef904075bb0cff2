"""Language models with and without routing heads, and how far a likelihood can be trusted."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor, nn

from flambeau.data import Batches, token_windows
from flambeau.data.text.corpora import Corpus
from flambeau.nn.attention import LocalRoutingAttention, collect_aux
from flambeau.nn.attention.diagnostics import attention_weights, jensen_shannon
from flambeau.objectives.next_token import next_token_nll
from flambeau.training import Trainer


def train_language(
    make: Callable[[], nn.Module],
    corpus: Corpus,
    context: int,
    batch_size: int,
    trainer: Trainer,
    *,
    seed: int,
    device: torch.device,
    folder: Path,
    progress: Any = None,
) -> nn.Module:
    """Train on windows of the corpus, at places drawn anew at every step."""
    torch.manual_seed(seed)
    model = make().to(device)
    windows = Windows(corpus.train, context)
    trainer.fit(model, language_loss, Batches(windows, batch_size), folder=folder, progress=progress, seed=seed)
    return model


def language_loss(model: nn.Module, tokens: Int[Tensor, "batch time"]) -> Tensor:
    """Mean nats of the next token, and the auxiliary losses of the layers."""
    return next_token_nll(model, tokens).mean() + collect_aux(model)


class Windows(torch.utils.data.Dataset):
    """Windows of ``context + 1`` tokens that overlap by one, as int64, without a copy of the corpus in memory."""

    def __init__(self, tokens: Int[Tensor, " tokens"], context: int):
        self.windows = token_windows(tokens, context)

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> Int[Tensor, " time"]:
        return self.windows[index].long()


@torch.no_grad()
def nats(model: nn.Module, tokens: Int[Tensor, " tokens"], context: int, most: int | None, device: Any) -> float:
    """Mean nats a token of a part, in windows of `context`, at most `most` windows spread evenly over it."""
    windows = token_windows(tokens, context)
    count = len(windows) if most is None else min(most, len(windows))
    total = 0.0
    for row in torch.linspace(0, len(windows) - 1, count).long():
        total += next_token_nll(model, windows[row].long()[None].to(device)).double().mean().item()
    return total / count


@torch.no_grad()
def stepwise_nats(model: nn.Module, tokens: Int[Tensor, "batch time"], device: Any) -> tuple[float, float]:
    """Mean nats a token by one pass over the windows, and by feeding one token after the other to a cache."""
    tokens = tokens.to(device)
    at_once = next_token_nll(model, tokens).double().mean().item()
    cache, logits = model.new_cache(len(tokens)), []
    for step in range(tokens.shape[1] - 1):
        logits.append(model(tokens[:, step : step + 1], cache=cache))
    one_by_one = F.cross_entropy(torch.cat(logits, 1).flatten(0, 1).double(), tokens[:, 1:].flatten()).item()
    return at_once, one_by_one


def bits(nats_a_token: float) -> float:
    """Nats as bits."""
    return nats_a_token / math.log(2)


def word_perplexity(nats_a_token: float, corpus: Corpus) -> float:
    """Perplexity a word, the published figure of WikiText-103 and PG-19: the likelihood of all test tokens over the
    words of the test part."""
    return math.exp(min(nats_a_token * len(corpus.test) / max(corpus.test_words, 1), 700.0))


def measure_language(
    run: Any, corpus: Corpus, make: Callable[..., nn.Module], context: int, batch_size: int, trainer: Trainer, own: bool
) -> None:
    """Local heads alone against local and routing heads, as large and as long trained; on the embedded text also the
    likelihood of balanced selection by one pass and by steps, and how far heads agree."""
    kinds = {
        "local": partial(make, corpus.vocab, local_heads=_heads(make), routing_heads=0),
        "local and routing": partial(make, corpus.vocab),
    }
    if not own:
        kinds["local and balanced routing"] = partial(make, corpus.vocab, selection="balanced")
    most = None if run.preset == "paper" else 16
    rows, models = [], {}
    for name, kind in kinds.items():
        models[name] = train_language(
            kind, corpus, context, batch_size, trainer, seed=run.seed, device=run.device,
            folder=run.folder / "train" / f"language {name}", progress=run.progress,
        )  # fmt: skip
        part = nats(models[name], corpus.test, context, most, run.device)
        size = sum(parameter.numel() for parameter in models[name].parameters())
        row = {"heads": name, f"bits a {corpus.unit}": bits(part), "parameters": size}
        rows.append(row | {"perplexity a word": word_perplexity(part, corpus)})
    figures = [row[f"bits a {corpus.unit}"] for row in rows]
    run.measure(
        "own_language" if own else "language", ours=figures[1], baseline=figures[0], value=figures[1] - figures[0]
    )
    if own:
        words = [row["perplexity a word"] for row in rows]
        run.measure("own_word_perplexity", ours=words[1], baseline=words[0], value=words[1])
    else:
        tokens = token_windows(corpus.test, min(context, 256))[:2].long()
        for row in rows:
            at_once, by_steps = stepwise_nats(models[row["heads"]], tokens, run.device)
            row["bits by one pass"], row["bits by steps"] = bits(at_once), bits(by_steps)
        last = rows[-1]
        at_once, by_steps = last["bits by one pass"], last["bits by steps"]
        run.measure("likelihood_gap", ours=at_once, baseline=by_steps, value=by_steps - at_once)
        run.table("divergence of heads", divergence_rows(models["local and routing"], tokens[:, :-1].to(run.device)))
    run.table("language models", rows)
    run.note(f"{corpus.name}: {len(corpus.train)} {corpus.unit}s to train on, {len(corpus.test)} to test on.")


@torch.no_grad()
def divergence_rows(model: nn.Module, tokens: Int[Tensor, "batch time"]) -> list[dict[str, Any]]:
    """Mean Jensen-Shannon divergence (nats, at most 0.69) of heads in every layer that mixes both kinds."""
    inputs: list[tuple[LocalRoutingAttention, Tensor]] = []
    hooks = [
        layer.register_forward_pre_hook(lambda layer, args: inputs.append((layer, args[0])))
        for layer in model.modules()
        if isinstance(layer, LocalRoutingAttention)
    ]
    model(tokens)
    for hook in hooks:
        hook.remove()
    rows = []
    for number, (layer, x) in enumerate(inputs):
        local, routing = attention_weights(layer.local, x), attention_weights(layer.routing, x)
        pairs = {
            "local, local": (local, local),
            "local, routing": (local, routing),
            "routing, routing": (routing, routing),
        }
        row: dict[str, Any] = {"mixed layer": number}
        for name, (first, second) in pairs.items():
            divergence = jensen_shannon(first, second)
            different = divergence if first is not second else divergence[~torch.eye(len(divergence)).bool()]
            row[name] = different.mean() if different.numel() else None
        rows.append(row)
    return rows


def _heads(make: Callable[..., nn.Module]) -> int:
    """Heads of a block of the model, whose sizes are the arguments of a partial or the class's defaults."""
    defaults = {name: p.default for name, p in inspect.signature(make).parameters.items()}
    return defaults["local_heads"] + defaults["routing_heads"]
