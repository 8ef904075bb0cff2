"""The mesh of devices: how many along each axis of parallelism."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace

import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

AXES = ("dp_replicate", "dp_shard", "cp", "tp")


@dataclass(frozen=True)
class MeshSpec:
    """Devices along each axis; their product is the number of processes.

    Axes are nested in the order dp_replicate, dp_shard, cp, tp: neighbours along tp, which talk most, are
    neighbouring ranks, on one machine if it is wide enough.

    dp_replicate: replicas of the model that share their gradients. dp_shard: data-parallel ranks
    over which parameters, gradients and optimiser are sharded; -1 is what the other axes leave of the world. cp: parts
    of each sequence. tp: parts of each layer.
    Raises ValueError for sizes below 1.
    """

    dp_replicate: int = 1
    dp_shard: int = 1
    cp: int = 1
    tp: int = 1

    def __post_init__(self) -> None:
        for name, size in asdict(self).items():
            if (
                not isinstance(size, int)
                or isinstance(size, bool)
                or (size < 1 and not (name == "dp_shard" and size == -1))
            ):
                allowed = " or -1" if name == "dp_shard" else ""
                raise ValueError(f"mesh.{name} must be an integer of at least 1{allowed}, got {size!r}")

    def resolve(self, world: int) -> MeshSpec:
        """The same with dp_shard=-1 replaced. Raises ValueError if the sizes do not multiply to `world` processes."""
        sizes = asdict(self)
        fixed = math.prod(size for size in sizes.values() if size != -1)
        if self.dp_shard == -1:
            if world % fixed:
                raise ValueError(f"{world} processes cannot be divided over {self}: the fixed axes take {fixed}")
            return replace(self, dp_shard=world // fixed)
        if fixed != world:
            shown = " x ".join(f"{name}={size}" for name, size in sizes.items() if size > 1) or "1"
            raise ValueError(f"the mesh {shown} needs {fixed} processes, there are {world}")
        return self

    def build(self, device: str) -> Mesh:
        """The mesh of this size over all processes of the group. device: "cpu" or "cuda"."""
        sizes = self.resolve(dist.get_world_size())
        devices = init_device_mesh(device, tuple(getattr(sizes, axis) for axis in AXES), mesh_dim_names=AXES)
        # A view of one axis is that axis: flattening would make a second group of the same ranks.
        sharded = devices["dp_shard"] if sizes.cp == 1 else devices["dp_shard", "cp"]._flatten("fsdp")
        if sizes.dp_replicate > 1:
            sharded = devices["dp_replicate", "dp_shard" if sizes.cp == 1 else "fsdp"]
        return Mesh(
            devices,
            batch=devices["dp_replicate", "dp_shard"]._flatten("batch"),
            fsdp=sharded,
            loss=devices["dp_replicate", "dp_shard", "cp"]._flatten("loss"),
        )


@dataclass(frozen=True)
class Mesh:
    """Devices with the five named axes, and the views of them that a plan needs: ``mesh["tp"]`` is one axis.

    batch: dp_replicate x dp_shard, the ranks that read different data. fsdp: dp_shard x cp, the ranks over which
    parameters are sharded, with dp_replicate as a first axis if there are replicas. loss: dp_replicate x dp_shard x
    cp, the ranks over which the loss is summed.
    """

    devices: DeviceMesh
    batch: DeviceMesh
    fsdp: DeviceMesh
    loss: DeviceMesh

    def __getitem__(self, axis: str) -> DeviceMesh:
        return self.devices[axis]
