"""Training with sequences over ranks, and what a step moves: run by every process of a group."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from flambeau.data.text.masked_language import MaskedLanguage
from flambeau.nn import Loopback, ring_attention
from flambeau.nn.ring.transport import GroupTransport
from flambeau.objectives.masked_language import masked_language_loss
from flambeau.ops.saved_tensors import SavedTensors
from flambeau.training import Trainer
from flambeau.training.parallel.apply import apply
from flambeau.training.parallel.context_parallel import context_of
from flambeau.training.parallel.plan import ParallelPlan
from flambeau.training.parallel.sequence_split import part_of, sequence_mean
from flambeau.training.parallel.traffic import Traffic

HOP_BYTES = 4 * 2**20


def spread(
    model: nn.Module, trainer: Trainer, data: MaskedLanguage, seed: int, folder: str, plan: ParallelPlan, hops: int
) -> dict[str, Any]:
    """Losses of a training under `plan` by every rank together, and what a hop and a step cost."""
    fit = replace(trainer, parallel=plan).fit(
        copy.deepcopy(model), loss_of(model), data, seed=seed, folder=Path(folder) / "spread"
    )
    ranks = dist.get_world_size()
    plans = [f"cp{ranks} {plan.context.region}"]
    if data.batch_size % ranks == 0:
        plans.append(f"fsdp{ranks}")
    return {
        "losses": [entry["loss"] for entry in fit.history],
        "seconds": fit.seconds,
        "hop": _hop_seconds(hops),
        "steps": {name: _step_bytes(model, data, name) for name in plans},
    }


def cost_tables(results: list[dict[str, Any]], tokens: int, width: int) -> dict[str, list[dict[str, Any]]]:
    """What a step of `tokens` tokens moves and keeps on a rank, by plan, and what a hop takes; from `spread`."""
    steps = [
        {
            "plan": name,
            "tokens a step": tokens,
            "tokens / 32 width": tokens / (32 * width),
            "sent, MiB": step["sent"] / 2**20,
            "saved, MiB": step["saved"] / 2**20,
            "parameters, MiB": step["parameters"] / 2**20,
        }
        for name, step in results[0]["steps"].items()
    ]
    exposed = sum(result["hop"]["exposed"] for result in results) / len(results)
    hop = {"ranks": len(results), "by itself, ms": 1e3 * results[0]["hop"]["alone"], "exposed, ms": 1e3 * exposed}
    return {"a step": steps, "a hop of 4 MiB": [hop]}


def loss_of(model: nn.Module) -> Callable[[Any, Any], Any]:
    """The training loss of a BERT, or of a transformers model that is called with input_ids and labels."""
    return bert_loss if hasattr(model, "token_losses") else transformers_loss


def bert_loss(model: Any, batch: dict[str, Tensor]) -> dict[str, Tensor] | Tensor:
    """`masked_language_loss`; of a model that is fed parts of sequences, with the gradient of this rank's share."""
    context = context_of(model)
    if context is None or context.spec.region == "blocks":
        return masked_language_loss(model, batch)
    part = part_of(batch, context.ranks, context.rank, context.spec.balance)
    logits, order = model(part["tokens"], part.get("mask"), part["segments"], part["positions"])
    losses = model.cross_entropy(logits, part["targets"])
    share = sequence_mean(losses, part["targets"] != -100, context.group)
    share = share + F.cross_entropy(order, part["order"]) / context.ranks
    total = share.detach().clone()
    dist.all_reduce(total, group=context.group)
    return share + (total - share.detach())


def transformers_loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Masked-token loss of a transformers model."""
    return model(input_ids=batch["tokens"], labels=batch["targets"]).loss


def _hop_seconds(hops: int) -> dict[str, float]:
    """Seconds a hop of 4 MiB takes by itself, and by which it makes a ring slower than its arithmetic."""
    group = dist.group.WORLD
    assert group is not None
    transport = GroupTransport(group)
    receivers = tuple((rank + 1) % transport.size for rank in range(transport.size))
    buffer = torch.zeros(HOP_BYTES // 4)
    queries = torch.zeros(1, 4, HOP_BYTES // 4 // (2 * 4 * 64), 64)  # keys and values together are one hop

    def hop() -> None:
        transport.exchange(buffer, receivers).wait()

    alone = _fastest(hop, hops)
    ring = _fastest(lambda: ring_attention(queries, queries, queries, group), max(1, hops // 4))
    arithmetic = _fastest(
        lambda: ring_attention(queries, queries, queries, Loopback(transport.size)), max(1, hops // 4)
    )
    return {"alone": alone, "exposed": (ring - arithmetic) / max(1, transport.size - 1)}


def _fastest(function: Callable[[], object], times: int) -> float:
    seconds = []
    for _ in range(times):
        dist.barrier()
        begin = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - begin)
    return min(seconds)


def _step_bytes(model: nn.Module, data: MaskedLanguage, plan: str) -> dict[str, int]:
    """Bytes that this rank sends in a step under `plan`, saves for backward and keeps as parameters."""
    parallel = apply(ParallelPlan.from_string(plan), copy.deepcopy(model))
    batch = parallel.local(data(0, torch.Generator().manual_seed(0)))
    loss = loss_of(model)
    with Traffic() as traffic:
        parallel.call(_backward, loss, parallel.module, batch)
        parallel.reduce_gradients()
    kept = sum((p.to_local() if hasattr(p, "to_local") else p).nbytes for p in parallel.module.parameters())
    # What FSDP gathers for a block is no activation: the same forward, unsharded, saves the same.
    unsharded = parallel.module if plan.startswith("cp") else copy.deepcopy(model)
    with SavedTensors(exclude=unsharded.parameters()) as saved:
        held = _loss(loss, unsharded, batch)
    del held
    return {"sent": _sent(traffic, dist.get_world_size()), "saved": saved.bytes, "parameters": kept}


def _loss(loss: Callable[[Any, Any], Any], model: nn.Module, batch: Any) -> Tensor:
    value = loss(model, batch)
    return value["loss"] if isinstance(value, dict) else value


def _backward(loss: Callable[[Any, Any], Any], model: nn.Module, batch: Any) -> None:
    _loss(loss, model, batch).backward()


def _sent(traffic: Traffic, ranks: int) -> int:
    """Bytes on this rank's link: a gather or scatter of S bytes moves (n-1)/n S in a ring, a sum twice that."""
    share = (ranks - 1) / ranks
    once = sum(traffic.bytes[kind] for kind in ("all_gather", "reduce_scatter", "all_to_all"))
    return round(traffic.bytes["send"] + share * (once + 2 * traffic.bytes["all_reduce"]))
