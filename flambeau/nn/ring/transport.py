"""How chunks get from rank to rank."""

from __future__ import annotations

from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh


class Arriving(Protocol):
    """A tensor on its way."""

    def wait(self) -> Tensor:
        """The tensor, once it is here."""
        ...


class Transport(Protocol):
    """A group of ranks seen from one of them."""

    rank: int
    size: int

    def exchange(self, tensor: Tensor, receivers: tuple[int, ...]) -> Arriving:
        """Send `tensor` to ``receivers[rank]`` and receive one of the same shape from whoever sends here."""
        ...

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """The tensors of all ranks, of equal shapes."""
        ...


class GroupTransport:
    """Ranks of a process group.

    Sending and receiving are posted as one batch, in the same order on all ranks, so that no pair waits for each
    other; `exchange` returns at once and the transfer runs while the caller computes.
    """

    def __init__(self, group: dist.ProcessGroup):
        self.group, self.rank, self.size = group, group.rank(), group.size()

    def exchange(self, tensor: Tensor, receivers: tuple[int, ...]) -> Arriving:
        """See `Transport`."""
        received = torch.empty_like(tensor, memory_format=torch.contiguous_format)
        peers = [
            dist.P2POp(dist.isend, tensor.contiguous(), group=self.group, group_peer=receivers[self.rank]),
            dist.P2POp(dist.irecv, received, group=self.group, group_peer=receivers.index(self.rank)),
        ]
        return _Transfer(dist.batch_isend_irecv(peers), peers[0].tensor, received)

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """See `Transport`."""
        gathered = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(gathered, tensor.contiguous(), group=self.group)
        return gathered


class Loopback:
    """One rank of a ring whose other ranks do not exist: it receives a copy of what it sends.

    Work, shapes and saved tensors are those of a real rank, values are not (without masks or dropout they are those of
    attention in which every chunk is the rank's own). For measuring how much memory a rank of a large ring needs.
    """

    def __init__(self, size: int, rank: int = 0):
        if not 0 <= rank < size:
            raise ValueError(f"rank must lie in [0, {size}), got {rank}")
        self.rank, self.size = rank, size

    def exchange(self, tensor: Tensor, receivers: tuple[int, ...]) -> Arriving:
        """See `Transport`."""
        return _Arrived(tensor.clone())

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """See `Transport`."""
        return [tensor] * self.size


def as_transport(group: dist.ProcessGroup | DeviceMesh | Loopback | None) -> Transport:
    """The transport of a process group or a mesh axis; None is a ring of one rank.

    Raises:
        ValueError: a mesh of several axes.
        TypeError: something else.
    """
    if group is None:
        return Loopback(1)
    if isinstance(group, Loopback):
        return group
    if isinstance(group, DeviceMesh):
        if group.ndim != 1:
            raise ValueError(f'group must be one axis of a mesh, as mesh["cp"] is; got axes {group.mesh_dim_names}')
        group = group.get_group()
    if not isinstance(group, dist.ProcessGroup):
        raise TypeError(f"group must be a process group, a mesh axis or None, got {type(group).__name__}")
    return GroupTransport(group)


class _Transfer:
    def __init__(self, works: list[Any], sent: Tensor, received: Tensor):
        self._works, self._sent, self._received = works, sent, received

    def wait(self) -> Tensor:
        for work in self._works:
            work.wait()
        return self._received


class _Arrived:
    def __init__(self, tensor: Tensor):
        self._tensor = tensor

    def wait(self) -> Tensor:
        return self._tensor
