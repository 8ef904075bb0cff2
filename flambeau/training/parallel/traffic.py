"""What processes tell each other: collective calls, counted with their bytes."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed import distributed_c10d as c10d
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Operators of torch.distributed (c10d) and of functional collectives, which DTensor and FSDP2 issue. An operator that
# is not named here (wait_tensor, barrier) moves no payload.
_KINDS = {
    "allreduce_": "all_reduce",
    "allreduce_coalesced_": "all_reduce",
    "all_reduce": "all_reduce",
    "all_reduce_": "all_reduce",
    "all_reduce_coalesced": "all_reduce",
    "all_reduce_coalesced_": "all_reduce",
    "reduce_": "reduce",
    "allgather_": "all_gather",
    "allgather_coalesced_": "all_gather",
    "allgather_into_tensor_coalesced_": "all_gather",
    "_allgather_base_": "all_gather",
    "all_gather_into_tensor": "all_gather",
    "all_gather_into_tensor_out": "all_gather",
    "all_gather_into_tensor_coalesced": "all_gather",
    "reduce_scatter_": "reduce_scatter",
    "_reduce_scatter_base_": "reduce_scatter",
    "reduce_scatter_tensor_coalesced_": "reduce_scatter",
    "reduce_scatter_tensor": "reduce_scatter",
    "reduce_scatter_tensor_out": "reduce_scatter",
    "reduce_scatter_tensor_coalesced": "reduce_scatter",
    "alltoall_": "all_to_all",
    "alltoall_base_": "all_to_all",
    "all_to_all_single": "all_to_all",
    "broadcast_": "broadcast",
    "broadcast": "broadcast",
    "gather_": "gather",
    "scatter_": "scatter",
    "send": "send",
    "isend": "send",
    "recv_": "recv",
    "irecv": "recv",
    "recv_any_source_": "recv",
}


@dataclass(frozen=True)
class Collective:
    """One call: its kind, the shape and bytes of the largest tensor it was given or gave, and the group's ranks."""

    kind: str
    shape: tuple[int, ...]
    bytes: int
    ranks: int


class Traffic(TorchDispatchMode):
    """Count the collectives that this rank takes part in inside the block, backward passes included.

        with Traffic() as traffic:
            model(x).sum().backward()
        print(traffic.calls["all_reduce"], traffic.bytes["all_reduce"])

    Kinds are all_reduce, all_gather, reduce_scatter, all_to_all, broadcast, reduce, gather, scatter, send and recv,
    whether issued by ``torch.distributed``, by functional collectives, DTensor or FSDP2. `.calls` and `.bytes` count
    by kind, `.collectives` is the list of all calls in order.

    Bytes are those of the whole tensor that the call deals with on this rank: the tensor reduced, the result of a
    gather, the input of a reduce-scatter, what is sent, what is received. What a ring puts on each link follows from
    it (`flambeau.training.parallel.cost`). Calls from threads other than the one that entered the block, and those of
    a CUDA backward graph that is captured, are not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()
        self.collectives: list[Collective] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # A DTensor first turns into operations on plain tensors; those come here again.
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented
        if func.namespace not in ("c10d", "_c10d_functional"):
            return func(*args, **(kwargs or {}))
        name = func._schema.name.partition("::")[2]
        result = func(*args, **(kwargs or {}))
        if name == "batch_p2p_ops":
            for operation, tensor in zip(args[0], args[3], strict=True):
                self._count("send" if "send" in operation else "recv", [tensor], 0)
        elif name in _KINDS:
            self._count(_KINDS[name], _larger_side(args, result), _ranks(args))
        return result

    def _count(self, kind: str, tensors: list[Tensor], ranks: int) -> None:
        size = _size(tensors)
        self.calls[kind] += 1
        self.bytes[kind] += size
        self.collectives.append(Collective(kind, tuple(tensors[0].shape) if tensors else (), size, ranks))

    def total(self) -> int:
        """Bytes of all kinds together, each transfer once (what is received was sent by another rank)."""
        return sum(size for kind, size in self.bytes.items() if kind != "recv")


def _larger_side(args: Any, result: Any) -> list[Tensor]:
    """The tensors on the side of the call that holds more: the output of a gather, the input of a reduce-scatter."""
    sides = []
    for side in (*args, result):
        tensors = {id(leaf): leaf for leaf in tree_leaves(side) if isinstance(leaf, Tensor)}
        sides.append(list(tensors.values()))
    return max(sides, key=_size)


def _size(tensors: list[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _ranks(args: Any) -> int:
    """Ranks of the group that a call names, by its object or by its name; 0 if none."""
    for argument in args:
        if isinstance(argument, str) and argument in c10d._world.pg_names.values():
            return int(c10d._resolve_process_group(argument).size())
        if isinstance(argument, c10d.ProcessGroup):
            return int(argument.size())
        if isinstance(argument, torch.ScriptObject):
            with suppress(RuntimeError):  # a reduction, not a group
                return int(c10d.ProcessGroup.unbox(argument).size())
    return 0
