"""Tensor parallelism from outside: the layers of a finished transformer split over a mesh axis with DTensor.

Shoeybi et al. 2019, arXiv 1909.08053, section 3; with norms on parts of the sequence Korthikanti et al. 2022,
arXiv 2205.05198.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import parallelize_module

from flambeau.training.parallel import tensor_styles as styles
from flambeau.training.parallel.cross_entropy import VocabParallelCrossEntropy
from flambeau.training.parallel.megatron_rules import GPT2, Family, family_of, matching
from flambeau.training.parallel.plan import Rule
from flambeau.training.parallel.random import draw_by_rank


def apply_tensor_parallel(
    model: nn.Module, mesh: DeviceMesh, placements: Literal["megatron", "megatron_sp"] | tuple[Rule, ...] = "megatron"
) -> None:
    """Split the layers of `model` over `mesh`, in place. Every rank has built a model of the same shape.

    Weights become DTensors (rank 0's values count, also for what all ranks hold whole); activations stay plain
    tensors. Attention computes a rank's own heads, with dropout masks of its own; a model with a ``cross_entropy``
    module keeps its logits split and gets a vocabulary-parallel one, any other returns whole logits. A vocabulary need
    not be divisible by the ranks. Known are this library's GPT and BERT and GPT-2, BERT and Llama of transformers
    (and models with the same module names); for others give rules.

    The fused ``c_attn`` of transformers' GPT-2 is laid out anew, head by head, so that a slice holds whole heads:
    undo it with `flambeau.training.parallel.tensor_styles.thirds_from_heads` before saving for transformers. Keys and
    values with fewer heads than there are ranks are computed by all, with a warning.

    Args:
        mesh: one axis, the ranks among which layers are split.
        placements: "megatron", "megatron_sp", or rules.

    Raises:
        ValueError: the mesh has several axes; heads, hidden sizes or features that the ranks do not divide; fewer
            tokens than ranks; a rule that fits no module; a tied weight of which one use alone is split; a model of
            unknown names. All before any communication. Also, as the first thing communicated: ranks that disagree on
            the size of the mesh, the placements or the shapes of the model.
        TypeError: a rule names a module of a kind that cannot be split so.
    """
    if mesh.ndim != 1:
        raise ValueError(f"mesh must have one axis, got {mesh.ndim}: take the tensor-parallel one, mesh['tp']")
    ranks = mesh.size()
    check_tensor_parallel(model, ranks, placements)
    family = family_of(model)
    rules, tied = _resolve(model, family, placements), _tied(model)
    _check_agreement(model, mesh, placements)

    sequence = any(style == "sequence" for style, _ in rules.values())
    if family is GPT2:
        attentions = matching(model, family.attention)
        laid = {f"{name}.c_attn.{kind}": a.num_heads for name, a in attentions.items() for kind in ("weight", "bias")}
        object.__setattr__(model, "_laid_by_heads", laid)
        styles.split_thirds_by_heads(attentions, ranks)
    _copy_whole_parameters(model, rules, mesh)
    keeps_split = hasattr(model, "cross_entropy")
    # BERT's pooler reads the first token, which one rank alone holds: parts of the sequence end before it.
    ends_early = sequence and hasattr(model, "pooler")
    plan: dict[str, Any] = {}
    for name, (style, module) in rules.items():
        between_parts = sequence and not (ends_early and style == "head")
        plan[name] = styles.parallel_style(
            module, style, sequence=between_parts, gather_logits=not keeps_split, name=name
        )
    if ends_early:
        plan["norm"] = styles.SequenceEnd()
    if family is not None:
        plan |= _replicated_keys(model, family, ranks)
        styles.share_inputs(model, [name for name, (style, _) in rules.items() if style == "column"], mesh)
    parallelize_module(model, mesh, plan)
    _tie(model, tied)
    if family is GPT2:
        styles.expect_thirds(matching(model, family.attention))

    rank = mesh.get_local_rank()
    if family is not None:
        for module in matching(model, family.attention).values():
            draw_by_rank(module, rank, getattr(module, family.shared_dropout) if family.shared_dropout else None)
    if sequence:
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                draw_by_rank(module, rank)
    if keeps_split and any(style == "head" for style, _ in rules.values()):
        model.cross_entropy = VocabParallelCrossEntropy(model.vocab, mesh.get_group())


def laid_by_heads(model: nn.Module) -> dict[str, int]:
    """Names of the parameters that `apply_tensor_parallel` laid out anew, head by head, and their numbers of heads."""
    return getattr(model, "_laid_by_heads", {})


def check_tensor_parallel(
    model: nn.Module, ranks: int, placements: Literal["megatron", "megatron_sp"] | tuple[Rule, ...] = "megatron"
) -> None:
    """Whether `model` can be split so: needs no process group, changes nothing, raises as `apply_tensor_parallel`."""
    family = family_of(model)
    rules = _resolve(model, family, placements)
    if family is not None:
        _check_heads(model, ranks)
    for name, (style, module) in rules.items():
        styles.check(name, module, style, ranks)
    _check_tied(model, _tied(model), rules)


def _resolve(
    model: nn.Module, family: Family | None, placements: Literal["megatron", "megatron_sp"] | tuple[Rule, ...]
) -> dict[str, tuple[str, nn.Module]]:
    """The style of every module that has one."""
    if isinstance(placements, str):
        if family is None:
            raise ValueError(f"no placements are known for {type(model).__name__}: give rules, Rule(module, style)")
        rules = family.rules
        if placements == "megatron_sp":
            if family.sequence is None:
                raise ValueError(
                    f"megatron_sp is for GPT and BERT of flambeau, got {type(model).__name__}: use megatron"
                )
            rules += family.sequence
    else:
        rules = placements
    resolved: dict[str, tuple[str, nn.Module]] = {}
    for rule in rules:
        modules = matching(model, rule.module)
        if not modules and not isinstance(placements, str):
            raise ValueError(f"no module fits the rule {rule.module!r} ({rule.style})")
        for name, module in modules.items():
            if not isinstance(module, nn.Identity):
                resolved[name] = (rule.style, module)
    return resolved


def _check_heads(model: nn.Module, ranks: int) -> None:
    for name, heads, kv_heads in styles.heads_of(model):
        if heads % ranks:
            raise ValueError(f"heads must be divisible by the {ranks} ranks, got {heads} in {name}")
        if kv_heads % ranks and ranks % kv_heads:
            raise ValueError(f"kv heads and ranks must divide one another, got {kv_heads} in {name} and {ranks} ranks")


def _replicated_keys(model: nn.Module, family: Family, ranks: int) -> dict[str, Any]:
    plan: dict[str, Any] = {}
    for name, heads, kv_heads in styles.heads_of(model):
        if kv_heads < ranks:
            attention = model.get_submodule(name)
            attention.num_key_value_groups = heads // ranks
            for part in ("k_proj", "v_proj"):
                plan[f"{name}.{part}"] = styles.ReplicatedHeads(kv_heads)
    if plan:
        warnings.warn(f"keys and values have fewer heads than the {ranks} ranks: all ranks compute them", stacklevel=3)
    return plan


def _tied(model: nn.Module) -> list[list[tuple[str, str]]]:
    """Names (module, parameter) of each parameter that has several."""
    names: dict[int, list[tuple[str, str]]] = {}
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            names.setdefault(id(parameter), []).append((prefix, name))
    return [group for group in names.values() if len(group) > 1]


def _check_tied(model: nn.Module, tied: list[list[tuple[str, str]]], rules: Mapping[str, Any]) -> None:
    for group in tied:
        styled = [module for module, _ in group if module in rules]
        layers = [m for m, _ in group if isinstance(model.get_submodule(m), nn.Linear | nn.Embedding)]
        if styled and len(layers) > len(styled):
            other = next(name for name in layers if name not in styled)
            raise ValueError(f"{other}.weight is tied to {styled[0]}.weight: rules must split both or neither")
    config = getattr(model, "config", None)
    if getattr(config, "tie_word_embeddings", False) and hasattr(model, "get_output_embeddings"):
        head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
        if head is not None and head.weight is not embedding.weight:
            raise ValueError(
                "config.tie_word_embeddings is set, but the output embedding is not tied: call tie_weights()"
            )


def _check_agreement(model: nn.Module, mesh: DeviceMesh, placements: Any) -> None:
    """All processes split the same model the same way: the alternative is a collective that never returns."""
    if dist.get_backend() == "fake" or dist.get_world_size() == 1:
        return
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    mine = (mesh.size(), str(placements))
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, mine)
    for rank, theirs in enumerate(everyone):
        if theirs != everyone[0]:
            ours = "rank 0 over {} by {}".format(*everyone[0])
            raise ValueError(f"rank {rank} splits layers over {theirs[0]} ranks by {theirs[1]}, {ours}")
    # Pipeline stages hold different layers; the ranks that share layers must hold the same.
    partners: list[Any] = [None] * mesh.size()
    dist.all_gather_object(partners, shapes, group=mesh.get_group())
    for rank, theirs in enumerate(partners):
        for name in partners[0].keys() | theirs.keys():
            if theirs.get(name) != partners[0].get(name):
                raise ValueError(
                    f"{name} has shape {partners[0].get(name)} on rank 0 of the mesh and {theirs.get(name)} on {rank}"
                )


def _copy_whole_parameters(model: nn.Module, rules: Mapping[str, Any], mesh: DeviceMesh) -> None:
    """Give all ranks rank 0's values of what is not split; splitting scatters the rest from there."""
    if dist.get_backend() == "fake" or mesh.size() == 1:
        return
    split = {id(parameter) for _, module in rules.values() for parameter in module.parameters()}
    for tensor in model.parameters():
        if id(tensor) not in split and not tensor.is_meta and not isinstance(tensor, DTensor):
            with torch.no_grad():
                dist.broadcast(tensor.data, group=mesh.get_group(), group_src=0)


def _tie(model: nn.Module, tied: list[list[tuple[str, str]]]) -> None:
    for group in tied:
        parameters = [getattr(model.get_submodule(module), name) for module, name in group]
        split = next((p for p in parameters if isinstance(p, DTensor)), parameters[0])
        for module, name in group:
            setattr(model.get_submodule(module), name, split)


def whole(tensor: Tensor) -> Tensor:
    """The whole tensor of which a DTensor is a part (every rank has to call it); a plain one as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
