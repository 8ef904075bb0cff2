"""A language model trained whole and split over processes: what is equal, what each holds, what they exchange."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flambeau.models.language import BERT
from flambeau.objectives.masked_language import masked_language_loss
from flambeau.training import Trainer, to_device
from flambeau.training.parallel import ParallelPlan, run_processes
from flambeau.training.parallel.apply import apply
from flambeau.training.parallel.cost import V100_DGX2H, TransformerSize, tensor_parallel_step
from flambeau.training.parallel.memory import memory_per_rank
from flambeau.training.parallel.parity import parity_table
from flambeau.training.parallel.tensor_parallel import check_tensor_parallel
from flambeau.training.parallel.traffic import Traffic

Loss = Callable[[nn.Module, Any], Tensor]

# Depth, width, heads and tensor-parallel ranks of Shoeybi et al. 2019, table 1, and the scaling of figure 5.
WEAK_SCALING = ((40, 1536, 16, 1), (54, 1920, 20, 2), (64, 2304, 24, 4), (72, 3072, 32, 8))
PUBLISHED = {(1, 1): 1.0, (2, 1): 0.95, (4, 1): 0.82, (8, 1): 0.77, (8, 8): 0.83, (8, 16): 0.79, (8, 64): 0.74}


def next_token_loss(model: nn.Module, windows: Tensor) -> Tensor:
    """Mean cross entropy (nats) of a GPT over windows [batch, time + 1]."""
    return model.token_losses(windows[:, :-1], windows[:, 1:]).mean()


def masked_loss(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """The loss of `masked_language_loss` alone."""
    return masked_language_loss(model, batch)["loss"]


def seeded_model(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    """The same model in every process."""
    torch.manual_seed(seed)
    return build()


def split_model(plan: str, build: Callable[[], nn.Module], seed: int) -> nn.Module:
    """The model of every process, once it is known that `plan` can split it; ValueError otherwise."""
    model, described = seeded_model(build, seed), ParallelPlan.from_string(plan)
    if described.mesh.tp > 1:
        check_tensor_parallel(model, described.mesh.tp, described.placements)
    return model


def train_split(
    plan: str,
    build: Callable[[], nn.Module],
    loss: Loss,
    training: Trainer,
    data: Any,
    batch: Any,
    folder: Path,
    seed: int,
    *,
    numerics: bool = True,
    device: str = "cpu",
) -> list[dict[str, Any]]:
    """Train in the processes of `plan`, on this machine or those of ``torchrun``; one dictionary a process.

    numerics: also compare every gradient with one process, which holds the model three times. device: "cuda" gives
    each process a GPU of its own; where there are fewer, all compute on the CPU.

    Returns:
        ``losses`` of every step; ``memory``, see `memory_per_rank`; ``forward``, ``backward`` and ``loss``, the calls
        and bytes of the collectives of one pass over `batch` (``loss``: those of its cross entropy, part of
        ``forward``); ``numerics``, see `parity_table`, empty if the plan does more than split layers.
    """
    sizes = ParallelPlan.from_string(plan).mesh
    if sizes.dp_shard == -1:
        sizes = sizes.resolve(int(os.environ.get("WORLD_SIZE", "1")))
    processes = math.prod(asdict(sizes).values())
    # Two ranks on one GPU cannot use NCCL.
    apart = device == "cuda" and ("RANK" in os.environ or torch.cuda.device_count() >= processes)
    device, backend = ("cuda", "nccl") if apart else ("cpu", "gloo")
    arguments = (plan, build, loss, training, data, batch, str(folder), seed, numerics, device)
    return run_processes(_train, processes, *arguments, backend=backend, timeout=1e6)


def _train(
    plan: str,
    build: Any,
    loss: Any,
    training: Trainer,
    data: Any,
    batch: Any,
    folder: str,
    seed: int,
    numerics: bool,
    device: str,
) -> dict[str, Any]:
    model, batch = seeded_model(build, seed).to(device), to_device(batch, torch.device(device))
    spread = apply(ParallelPlan.from_string(plan), copy.deepcopy(model))
    spread.module.train()
    parts: dict[str, Any] = {"memory": memory_per_rank(spread.module)}
    entropy = Traffic()
    _count_loss(spread.module, entropy)
    with Traffic() as forward:
        value = spread.call(loss, spread.module, spread.local(batch))
    with Traffic() as backward:
        value.backward()
    for name, traffic in (("forward", forward), ("loss", entropy), ("backward", backward)):
        parts[name] = {"calls": dict(traffic.calls), "bytes": dict(traffic.bytes)}
    mesh = spread.mesh["tp"]
    parts["numerics"] = []
    if numerics and mesh.size() == torch.distributed.get_world_size():
        parts["numerics"] = parity_table(copy.deepcopy(model), lambda one: loss(one, batch), mesh)
    fit = replace(training, parallel=plan).fit(model, loss, data, folder=folder, seed=seed)
    return parts | {"losses": [entry["loss"] for entry in fit.history]}


def _count_loss(model: nn.Module, traffic: Traffic) -> None:
    model.cross_entropy.register_forward_pre_hook(lambda *_: traffic.__enter__() and None)
    model.cross_entropy.register_forward_hook(lambda *_: traffic.__exit__(None, None, None))


def gradient_at_init(norm: str, depth: int, seed: int, inits: int = 8) -> float:
    """Norm of the gradient of the last block's second MLP matrix before training, mean over initialisations.

    A BERT of width 64 whose linear layers are drawn by Xavier's rule, on random tokens: where the LayerNorms stand
    decides whether it falls with depth (Xiong et al. 2020, arXiv 2002.04745, theorem 1).
    """
    norms = []
    for init in range(inits):
        model = seeded_model(lambda: BERT(256, 32, 64, depth, 4, dropout=0.0, norm=norm), 1000 * seed + init)  # type: ignore[arg-type]
        for module in model.modules():
            if isinstance(module, nn.Linear) and module is not model.head:  # the head is the embedding
                nn.init.xavier_uniform_(module.weight)
        tokens, targets = torch.randint(256, (2, 8, 32))
        model.token_losses(tokens, targets).mean().backward()
        norms.append(float(model.blocks[-1].mlp.down.weight.grad.norm()))
    return sum(norms) / inits


def weak_scaling_table() -> list[dict[str, Any]]:
    """The paper's weak scaling, computed from sizes and one bandwidth, beside what it measured."""
    rows = []
    for depth, width, heads, tensor in WEAK_SCALING:
        size = TransformerSize(depth, width, heads)
        for data in (1, 8, 16, 64):
            published = PUBLISHED.get((tensor, data))
            if published is None:
                continue
            step = tensor_parallel_step(size, V100_DGX2H, tensor=tensor, data=data)
            rows.append(
                {
                    "GPUs": tensor * data,
                    "split over": tensor,
                    "parameters, billions": round(size.parameters / 1e9, 1),
                    "step, seconds": round(step.seconds, 2),
                    "efficiency": round(step.efficiency, 3),
                    "paper": published,
                }
            )
    return rows
