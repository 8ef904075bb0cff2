"""Does a split model compute what the whole one does? A table for a user's own model."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor

from flambeau.training.parallel.launch import run_processes
from flambeau.training.parallel.plan import Rule
from flambeau.training.parallel.tensor_parallel import apply_tensor_parallel, whole
from flambeau.training.parallel.tensor_styles import thirds_from_heads

Placements = Literal["megatron", "megatron_sp"] | tuple[Rule, ...]
Loss = Callable[[nn.Module], Tensor]
TIMES_ROUNDING = 20.0


def parity_table(
    model: nn.Module, loss: Loss, mesh: DeviceMesh, placements: Placements = "megatron"
) -> list[dict[str, Any]]:
    """Loss and every gradient of `model` split over `mesh`, against one process; every rank has to call it.

    How much difference is normal is measured too: ``rounding`` is the distance of the one process itself from the
    same model in float64. Sums in another order round differently, so that ``difference`` should be of that size.

    Args:
        model: is split in place. It is put in evaluation mode: dropout draws other masks when split.
        loss: ``loss(model)``, a scalar; the same on all ranks.

    Returns:
        Rows ``tensor``, ``shape``, ``placement``, ``difference`` and ``rounding`` (largest absolute differences over
        the tensor's largest entry, or a millionth of the largest gradient if that is more) and ``agrees``: difference
        at most twenty times rounding, or one unit in the last place of the model's type times the sum's length.
    """
    model.eval()
    alone, exact = copy.deepcopy(model), copy.deepcopy(model).double()
    apply_tensor_parallel(model, mesh, placements)
    split, single, precise = (loss(one) for one in (model, alone, exact))
    for value in (split, single, precise):
        value.backward()
    rows = [_row("loss", "", split.detach(), single.detach(), precise.detach(), floor=0.0)]
    singles, exacts = dict(alone.named_parameters()), dict(exact.named_parameters())
    largest = max(float(p.grad.abs().max()) for p in exacts.values() if p.grad is not None)
    for name, parameter in model.named_parameters():
        if singles[name].grad is None:
            continue
        gradient = whole(parameter.grad)
        if ".c_attn." in name:
            gradient = thirds_from_heads(gradient, model.config.n_head)
        lies = str(parameter.placements[0]) if isinstance(parameter, DTensor) else "whole"
        rows.append(_row(name, lies, gradient, singles[name].grad, exacts[name].grad, floor=1e-6 * largest))
    return rows


def check_numerics(
    model: str | Callable[[], nn.Module],
    ranks: int = 2,
    placements: Placements = "megatron",
    *,
    batch: int = 2,
    length: int = 32,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """`parity_table` of a model in `ranks` processes of this machine, on random tokens.

    Args:
        model: ``"hf:FOLDER"`` or ``"hf:NAME"`` for a causal or masked language model of transformers, or a function
            of a module that builds a model with ``vocab`` and ``token_losses`` (this library's GPT and BERT).
    """
    return run_processes(_check, ranks, model, placements, batch, length, seed)[0]


def _check(model: Any, placements: Placements, batch: int, length: int, seed: int) -> list[dict[str, Any]]:
    torch.manual_seed(seed)
    built = _pretrained(model.removeprefix("hf:")) if isinstance(model, str) else model()
    config = getattr(built, "config", None)
    vocab = built.vocab if config is None else config.vocab_size
    longest: Any = built.length if config is None else getattr(config, "max_position_embeddings", length)
    length = min(length, longest)
    tokens = torch.randint(vocab, (batch, length), generator=torch.Generator().manual_seed(seed))

    def loss(one: nn.Module) -> Tensor:
        if config is not None:
            return one(input_ids=tokens, labels=tokens).loss
        return one.token_losses(tokens, tokens.roll(-1, 1)).mean()

    mesh = init_device_mesh("cpu", (dist.get_world_size(),), mesh_dim_names=("tp",))
    return parity_table(built, loss, mesh, placements)


def _pretrained(source: str) -> nn.Module:
    try:
        from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM
    except ModuleNotFoundError:
        raise ModuleNotFoundError("hf: models need transformers: pip install 'flambeau[hf]'") from None
    architectures = AutoConfig.from_pretrained(source).architectures or []
    kind = AutoModelForMaskedLM if any("MaskedLM" in name or "PreTraining" in name for name in architectures) else None
    return (kind or AutoModelForCausalLM).from_pretrained(source, dtype=torch.float32)


def _row(name: str, lies: str, split: Tensor, single: Tensor, exact: Tensor, floor: float) -> dict[str, Any]:
    scale = max(float(exact.abs().max()), floor) or 1.0
    difference = float((split - single).abs().max()) / scale
    rounding = float((single - exact).abs().max()) / scale
    last_place = torch.finfo(single.dtype).eps * math.sqrt(max(single.shape, default=1))
    return {
        "tensor": name,
        "shape": list(single.shape),
        "placement": lies,
        "difference": difference,
        "rounding": rounding,
        "agrees": difference <= max(TIMES_ROUNDING * rounding, 10 * last_place),
    }


def replicated_drift(model: nn.Module, mesh: DeviceMesh) -> dict[str, float]:
    """How far the ranks' copies of each parameter that all hold whole are apart; every rank has to call it.

    Norms, positions and biases behind a sum are updated by each rank for itself. As all see the same gradient bit for
    bit, anything but 0.0 means that something draws or sums differently on the ranks.
    """
    drift = {}
    for name, parameter in model.named_parameters():
        if isinstance(parameter, DTensor) and not parameter.placements[-1].is_replicate():
            continue
        local = parameter.to_local() if isinstance(parameter, DTensor) else parameter
        low, high = local.detach().clone(), local.detach().clone()
        dist.all_reduce(low, dist.ReduceOp.MIN, group=mesh.get_group())
        dist.all_reduce(high, dist.ReduceOp.MAX, group=mesh.get_group())
        drift[name] = float((high - low).max())
    return drift
