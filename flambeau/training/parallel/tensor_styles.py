"""How one layer is split with DTensor: where its weight, its input and its output lie."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard, distribute_module, distribute_tensor
from torch.distributed.tensor.parallel import ParallelStyle

# Axis of the weight that holds the output features and the input features.
_AXES = {"Linear": (0, 1), "Conv1D": (1, 0)}


def check(name: str, module: nn.Module, style: str, ranks: int) -> None:
    """Raises TypeError or ValueError, naming the module, if it cannot be split over `ranks` in this style."""
    kind = type(module).__name__
    if style in ("column", "row", "head"):
        if kind not in _AXES and not isinstance(module, nn.Linear):
            raise TypeError(f"{name}: style {style!r} is for linear layers, got {kind}")
        out, into = _AXES["Conv1D" if kind == "Conv1D" else "Linear"]
        features = module.weight.shape[into if style == "row" else out]
        if style == "head" and features < ranks:
            raise ValueError(f"{name}: the vocabulary must have at least {ranks} tokens (ranks), got {features}")
        if style != "head" and features % ranks:
            side = "input" if style == "row" else "output"
            raise ValueError(f"{name}: {side} features must be divisible by the {ranks} ranks, got {features}")
    elif style == "vocab":
        if not isinstance(module, nn.Embedding):
            raise TypeError(f"{name}: style 'vocab' is for embeddings, got {kind}")
        if module.num_embeddings < ranks:
            raise ValueError(
                f"{name}: the vocabulary must have at least {ranks} tokens (ranks), got {module.num_embeddings}"
            )
        if module.max_norm is not None or module.scale_grad_by_freq or module.sparse:
            raise ValueError(f"{name}: max_norm, scale_grad_by_freq and sparse need the whole embedding on one rank")
    elif not isinstance(module, nn.Embedding | nn.LayerNorm | nn.RMSNorm):
        raise TypeError(f"{name}: style 'sequence' is for norms and embeddings, got {kind}")


def parallel_style(module: nn.Module, style: str, *, sequence: bool, gather_logits: bool, name: str) -> ParallelStyle:
    """The torch style of a rule's style. sequence: hidden states between blocks are parts of the sequence."""
    between: Placement = Shard(1) if sequence else Replicate()
    if style == "vocab":
        return Layer({"weight": Shard(0)}, Replicate(), Replicate(), between, tokens_of=name if sequence else None)
    if style == "sequence":
        given = Replicate() if isinstance(module, nn.Embedding) else Shard(1)
        return Layer({}, given, Shard(1), Shard(1))
    out, into = _AXES["Conv1D" if type(module).__name__ == "Conv1D" else "Linear"]
    if style == "row":
        return Layer({"weight": Shard(into)}, Shard(-1), Shard(-1), between)
    split = {"weight": Shard(out), "bias": Shard(0)}
    output = Replicate() if style == "head" and gather_logits else Shard(-1)
    return Layer(split, between, Replicate(), output)


class Layer(ParallelStyle):
    """A layer with split parameters (those not named are whole on all ranks) between plain tensors.

    given: where the input lies. needed: where the layer needs it. output: where its output shall lie.
    tokens_of: the input is token ids whose sequence must be divisible; the name for the message.
    """

    def __init__(
        self,
        split: Mapping[str, Placement],
        given: Placement,
        needed: Placement,
        output: Placement,
        tokens_of: str | None = None,
    ):
        super().__init__()
        self.split, self.given, self.needed, self.output, self.tokens_of = split, given, needed, output, tokens_of

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        return distribute_module(module, device_mesh, self._partition, self._enter, self._leave)

    def _partition(self, name: str, module: nn.Module, mesh: DeviceMesh) -> None:
        for key, parameter in list(module.named_parameters(recurse=False)):
            whole = distribute_tensor(parameter.detach(), mesh, [self.split.get(key, Replicate())])
            module.register_parameter(key, nn.Parameter(whole, requires_grad=parameter.requires_grad))

    def _enter(self, module: nn.Module, inputs: Any, mesh: DeviceMesh) -> Any:
        x = inputs[0]
        if self.tokens_of is not None and x.shape[1] % mesh.size():
            raise ValueError(
                f"{self.tokens_of}: sequence parallelism needs a length divisible by the {mesh.size()} ranks, "
                f"got {x.shape[1]}"
            )
        if not isinstance(x, DTensor):
            x = DTensor.from_local(x, mesh, [self.given], run_check=False)
        return (x if self.given == self.needed else x.redistribute(placements=[self.needed]), *inputs[1:])

    def _leave(self, module: nn.Module, output: Any, mesh: DeviceMesh) -> Tensor:
        return output.redistribute(placements=[self.output]).to_local()


class SequenceEnd(Layer):
    """The last module that works on parts of the sequence: its output is the whole one. Also for nn.Identity."""

    def __init__(self) -> None:
        super().__init__({}, Shard(1), Shard(1), Replicate())


class ReplicatedHeads(Layer):
    """Keys or values with fewer heads than ranks: all ranks compute all, each goes on with the head its queries use."""

    def __init__(self, heads: int):
        super().__init__({}, Replicate(), Replicate(), Replicate())
        self.heads = heads

    def _leave(self, module: nn.Module, output: Any, mesh: DeviceMesh) -> Tensor:
        # Each rank gives back the gradient of its own head only: the whole gradient is the sum.
        heads = output.to_local(grad_placements=[Partial()]).unflatten(-1, (self.heads, -1))
        return heads[..., mesh.get_local_rank() * self.heads // mesh.size(), :]


def share_inputs(model: nn.Module, columns: list[str], mesh: DeviceMesh) -> None:
    """Let column layers of one module (queries, keys and values, say) sum the gradient of their input once."""
    parents = [name.rpartition(".")[0] for name in columns]
    for parent in {parent for parent in parents if parents.count(parent) > 1}:
        model.get_submodule(parent).register_forward_pre_hook(partial(_share, mesh), with_kwargs=True)


def _share(mesh: DeviceMesh, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if args:
        return (DTensor.from_local(args[0], mesh, [Replicate()], run_check=False), *args[1:]), kwargs
    shared = DTensor.from_local(kwargs["hidden_states"], mesh, [Replicate()], run_check=False)
    return args, kwargs | {"hidden_states": shared}


def heads_of(model: nn.Module) -> Iterator[tuple[str, int, int]]:
    """Name, heads and heads of keys of every attention module of a known model."""
    config: Any = getattr(model, "config", None)
    for name, module in model.named_modules():
        if hasattr(module, "qkv") and hasattr(module, "head_dim"):
            heads = module.qkv.out_features // (3 * module.head_dim)
            yield name, heads, heads
        elif hasattr(module, "c_attn"):
            yield name, module.num_heads, module.num_heads
        elif hasattr(module, "query") and hasattr(module, "num_attention_heads"):
            yield name, module.num_attention_heads, module.num_attention_heads
        elif hasattr(module, "q_proj") and hasattr(module, "k_proj"):
            yield name, config.num_attention_heads, config.num_key_value_heads


def split_thirds_by_heads(attentions: Mapping[str, nn.Module], ranks: int) -> None:
    """Lay out the weights of transformers' GPT-2 attention head by head, and let it count the heads of one rank."""
    for attention in attentions.values():
        order = _heads_from_thirds(attention.num_heads, attention.head_dim)
        with torch.no_grad():
            attention.c_attn.weight.copy_(attention.c_attn.weight[:, order])
            attention.c_attn.bias.copy_(attention.c_attn.bias[order])
        attention.num_heads //= ranks
        attention.split_size //= ranks


def expect_thirds(attentions: Mapping[str, nn.Module]) -> None:
    """Hand transformers' GPT-2 attention the queries, keys and values of its heads as the thirds that it expects.

    To be called once the layers are split: hooks run in the order they were registered.
    """
    for attention in attentions.values():
        attention.c_attn.register_forward_hook(partial(_thirds, attention.head_dim))


def thirds_from_heads(tensor: Tensor, heads: int) -> Tensor:
    """``c_attn.weight`` or ``.bias`` as transformers lays it out, of the whole one that lies head by head."""
    order = _heads_from_thirds(heads, tensor.shape[-1] // (3 * heads)).argsort()
    return tensor[..., order.to(tensor.device)]


def heads_from_thirds(tensor: Tensor, heads: int) -> Tensor:
    """The inverse of `thirds_from_heads`."""
    return tensor[..., _heads_from_thirds(heads, tensor.shape[-1] // (3 * heads)).to(tensor.device)]


def _heads_from_thirds(heads: int, head_dim: int) -> Tensor:
    return torch.arange(3 * heads * head_dim).view(3, heads, head_dim).transpose(0, 1).reshape(-1)


def _thirds(head_dim: int, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    return output.unflatten(-1, (-1, 3, head_dim)).transpose(-3, -2).flatten(-3)
