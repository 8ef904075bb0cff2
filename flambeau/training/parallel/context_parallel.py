"""Context parallelism: each rank of the cp axis holds a part of every sequence, and all weights."""

from __future__ import annotations

import warnings
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from flambeau.models.language.bert import BERT
from flambeau.nn.attention.core import AttentionCore, LinformerCore
from flambeau.nn.collectives import copy_to_ranks
from flambeau.nn.ring import Loopback, SequenceLayout, ring_attention
from flambeau.nn.ring.transport import as_transport
from flambeau.training.parallel.plan import ContextSpec
from flambeau.training.parallel.random import draw_by_rank
from flambeau.training.parallel.sequence_split import JoinSequence, SplitSequence, first_token


class Context:
    """What the attentions of one model share: the ranks, how they attend, and the running forward's tokens."""

    def __init__(self, group: dist.ProcessGroup | Loopback, spec: ContextSpec):
        self.group, self.spec = group, spec
        transport = as_transport(group)
        self.ranks, self.rank = transport.size, transport.rank
        self.length = 0
        self.layout = SequenceLayout.split(1, self.ranks)

    def begin(self, length: int) -> None:
        """The next forward is over sequences of `length` tokens."""
        if length != self.length:
            self.length, self.layout = length, SequenceLayout.split(length, self.ranks, self.spec.balance)

    def positions(self) -> Tensor:
        """Of this rank's tokens."""
        return self.layout.keys[self.rank]

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, *, causal: bool, **options: Any) -> Tensor:
        """`ring_attention` over the group, padding hidden."""
        # Causal attention does not see padding at the end anyway.
        lengths = None if causal or self.layout.keys.numel() == self.length else self.length
        return ring_attention(
            queries,
            keys,
            values,
            self.group,
            causal=causal,
            positions=self.layout,
            lengths=lengths,
            mode=self.spec.mode,
            **options,
        )


class ContextAttention(nn.Module):
    """Takes the place of an `AttentionCore`: this rank's queries see the keys of all ranks."""

    def __init__(self, core: AttentionCore, context: Context):
        super().__init__()
        self.causal, self.dropout = core.causal, core.dropout
        self.window: int | None = getattr(core, "window", None)
        self.context = context

    def forward(
        self,
        queries: Float[Tensor, "batch heads chunk head_dim"],
        keys: Float[Tensor, "batch heads chunk head_dim"],
        values: Float[Tensor, "batch heads chunk head_dim"],
        mask: Bool[Tensor, "batch chunk"] | None = None,
    ) -> Float[Tensor, "batch heads chunk head_dim"]:
        """mask: True for this rank's tokens that may be looked at."""
        return self.context.attend(
            queries,
            keys,
            values,
            causal=self.causal,
            window=self.window,
            key_mask=mask,
            dropout_p=self.dropout if self.training else 0.0,
        )


def apply_context_parallel(model: nn.Module, mesh: DeviceMesh, spec: ContextSpec) -> None:
    """Let each rank of `mesh` work on its part of every sequence, in place. With one rank nothing changes.

    Known attentions are `AttentionCore` and its sparse kinds (GPT, BERT and every model built of `SelfAttention`), and
    those of transformers models that read their attention from transformers' interface (BERT, GPT-2, Llama, ...).

    With ``region="blocks"`` hidden states [batch, time, width] are cut where they enter the first block, with whatever
    else the blocks are given that has this time axis (masks, rotary angles), and put together behind the last; lengths
    that cannot be divided are padded. All outside is computed alike on all ranks, so loss and gradients there are
    whole, and only the blocks' parameters have partial gradients, to be summed over the axis.
    With ``region="input"`` the model is fed parts of sequences (`shard_sequence`) with their positions; gradients of
    all parameters are partial, and so is the loss (`sequence_mean`). `context_parameters` tells which are partial.

    Raises:
        ValueError: the model has no known attention, or its attentions do not lie in lists of blocks, or a
            parameter is used both inside and outside of it.
    """
    if mesh.size() == 1:
        return
    context = Context(mesh.get_group(), spec)
    causal = _patch_cores(model, context) + _patch_transformers(model, context)
    if not causal:
        raise ValueError(
            f"{type(model).__name__} has no attention that could be spread over ranks: known are AttentionCore and "
            "transformers' attention interface"
        )
    if spec.balance == "zigzag" and not any(causal):
        warnings.warn("balance='zigzag' only evens out causal attention; this model has none", stacklevel=2)
    networks = _blocks(model)
    blocks = [block for network in networks for block in network]
    object.__setattr__(model, "_context", context)
    own_random = blocks  # what a rank does with its own tokens draws its own dropout masks
    if spec.region == "blocks":
        _check_not_shared(model, blocks)
        for network in networks:
            _cut_at_blocks(network, context)
    else:
        for network in networks:
            _begin_with_parts(network[0], context)
        inside = {id(module) for block in blocks for module in block.modules()}
        own_random = blocks + [m for m in model.modules() if isinstance(m, nn.Dropout) and id(m) not in inside]
        if isinstance(model, BERT):
            model.pooler.register_forward_pre_hook(lambda module, args: (first_token(args[0], context.group),))
    for module in own_random:
        draw_by_rank(module, context.rank)


def context_of(model: nn.Module) -> Context | None:
    """What `apply_context_parallel` gave the model; None if it has not been applied."""
    return getattr(model, "_context", None)


def context_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Parameters whose gradients are partial under `apply_context_parallel` and have to be summed over the axis."""
    context = context_of(model)
    if context is None:
        return []
    if context.spec.region == "input":
        return list(model.parameters())
    return [parameter for network in _blocks(model) for block in network for parameter in block.parameters()]


def _patch_cores(model: nn.Module, context: Context) -> list[bool]:
    """Whether each attention found is causal."""
    causal = []
    for module in list(model.modules()):
        core = getattr(module, "core", None)
        if isinstance(core, AttentionCore):
            module.core = ContextAttention(core, context)
            causal.append(core.causal)
        elif isinstance(core, LinformerCore):
            core.context = lambda: (context.group, context.positions())
            causal.append(False)
    return causal


def _patch_transformers(model: nn.Module, context: Context) -> list[bool]:
    if not hasattr(getattr(model, "config", None), "_attn_implementation"):
        return []
    from flambeau.training.parallel.context_transformers import patch

    return patch(model, context)


def _is_attention(module: nn.Module) -> bool:
    return isinstance(module, ContextAttention | LinformerCore) or "_context" in module.__dict__


def _blocks(model: nn.Module) -> list[list[nn.Module]]:
    """The outermost lists of modules of which each holds attentions, one a network (a student and its teacher, say)."""
    attentions = {id(module) for module in model.modules() if module is not model and _is_attention(module)}
    networks: list[list[nn.Module]] = []
    found: set[int] = set()
    for module in model.modules():
        if isinstance(module, nn.ModuleList | nn.Sequential) and len(module):
            held = [{id(part) for part in block.modules()} & attentions for block in module]
            if all(held) and not found & set().union(*held):
                networks.append(list(module))
                found |= set().union(*held)
    if not networks or found != attentions:
        raise ValueError(f"the attentions of {type(model).__name__} do not lie in lists of blocks, each with its own")
    return networks


def _check_not_shared(model: nn.Module, blocks: list[nn.Module]) -> None:
    inside = {id(module) for block in blocks for module in block.modules()}
    partial = {id(parameter) for block in blocks for parameter in block.parameters()}
    for name, module in model.named_modules():
        for parameter_name, parameter in module.named_parameters(prefix=name, recurse=False):
            if id(module) not in inside and id(parameter) in partial:
                raise ValueError(
                    f"parameter {parameter_name} is also used inside of the blocks, so that its gradient is partial in "
                    "one place and whole in the other; use region='input'"
                )


def _begin_with_parts(first: nn.Module, context: Context) -> None:
    """Before the first block, which part of the sequence each rank holds follows from its size."""

    def begin(module: nn.Module, args: Any, kwargs: Any) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        chunks = [torch.empty(1, dtype=torch.int64, device=hidden.device) for _ in range(context.ranks)]
        dist.all_gather(chunks, torch.tensor([hidden.shape[1]], device=hidden.device), group=context.group)
        sizes = torch.cat(chunks).tolist()
        if len(set(sizes)) > 1:
            raise ValueError(f"all ranks must have the same number of tokens, got {sizes}; use shard_sequence")
        if context.spec.balance == "zigzag" and sizes[0] % 2:
            raise ValueError(f"balance='zigzag' gives every rank two equal parts, got {sizes[0]} tokens")
        context.begin(sum(sizes))

    first.register_forward_pre_hook(begin, with_kwargs=True)


def _cut_at_blocks(blocks: list[nn.Module], context: Context) -> None:
    def local(value: Any) -> Any:
        """This rank's part of an argument of a block."""
        if isinstance(value, tuple | list):
            return type(value)(local(item) for item in value)
        if not isinstance(value, Tensor):
            return value
        length = context.length
        if value.ndim in (2, 3) and value.shape[1] == length:
            return SplitSequence.apply(value, context.group, context.layout.queries)
        if value.ndim == 4 and value.shape[2] == length:  # rows of a mask of all pairs
            rows = SplitSequence.apply(value.transpose(1, 2), context.group, context.layout.queries)
            return rows.transpose(1, 2)
        return copy_to_ranks(value, context.group) if value.requires_grad else value

    def enter(module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        # What blocks pass on to each other, the first argument, is cut once; the rest is given whole to each block.
        position = [args[0]] if args else []
        named = {name: value if name == "hidden_states" else local(value) for name, value in kwargs.items()}
        return (*position, *(local(value) for value in args[1:])), named

    def begin(module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        hidden = args[0] if args else kwargs["hidden_states"]
        context.begin(hidden.shape[1])
        part = SplitSequence.apply(hidden, context.group, context.layout.queries)
        return ((part, *args[1:]), kwargs) if args else ((), {**kwargs, "hidden_states": part})

    def leave(module: nn.Module, args: Any, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        whole = JoinSequence.apply(hidden, context.group, context.layout.queries)[:, : context.length]
        return (whole, *output[1:]) if isinstance(output, tuple) else whole

    blocks[0].register_forward_pre_hook(begin, with_kwargs=True)
    for block in blocks:
        block.register_forward_pre_hook(enter, with_kwargs=True)
    blocks[-1].register_forward_hook(leave)
