"""Apply a plan to a model, from outside."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from flambeau.training.parallel.context_parallel import apply_context_parallel, context_parameters
from flambeau.training.parallel.launch import join_group
from flambeau.training.parallel.mesh import Mesh
from flambeau.training.parallel.placement import gathered
from flambeau.training.parallel.plan import ParallelPlan
from flambeau.training.parallel.tensor_parallel import apply_tensor_parallel, laid_by_heads
from flambeau.training.parallel.tensor_styles import heads_from_thirds, thirds_from_heads

T = TypeVar("T")
BUCKET_ELEMENTS = 8 * 2**20


class ParallelModel:
    """A model under a plan: what a training loop needs beyond the model itself.

    module: the model, changed in place; its parameters may be DTensors. plan, mesh: where it lies. first: whether this
    process writes files. number: which part of the data this process reads; processes that read the same part draw
    the same random numbers.
    """

    def __init__(self, module: nn.Module, plan: ParallelPlan, mesh: Mesh):
        self.module, self.plan, self.mesh = module, plan, mesh
        self.first = dist.get_rank() == 0
        self.number = mesh.batch.get_local_rank()
        self._cp = mesh["cp"].size()
        self._context = {id(parameter) for parameter in context_parameters(module)} if self._cp > 1 else set()
        self._root: _Call | None = None
        if plan.mesh.dp_shard != 1:
            self._root = _shard(module, mesh)
            # Sharding replaced the parameters; the blocks' are again those that attention needs to be summed.
            self._context = {id(parameter) for parameter in context_parameters(module)} if self._cp > 1 else set()

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """``function(*arguments)`` with the parameters that it may touch in place. Every rank has to call it."""
        if self._root is None:
            return function(*arguments)
        result = self._root(function, *arguments)
        if not torch.is_grad_enabled():
            self._root.reshard()  # FSDP leaves its root gathered for the backward that does not come
        return result

    def local(self, batch: Any) -> Any:
        """This rank's rows of a batch that is the same on all ranks.

        Raises:
            ValueError: a tensor's first axis cannot be divided over the data-parallel ranks.
        """
        ranks, rank = self.mesh.batch.size(), self.mesh.batch.get_local_rank()
        return batch if ranks == 1 else _rows(batch, ranks, rank)

    def reduce_gradients(self) -> None:
        """Make every gradient that of the mean loss over all data; call it after backward, before clipping.

        Saved buffers (running statistics of BatchNorm, a queue) become those of the first rank of the data-parallel
        axis, as under DistributedDataParallel, so that what is saved is what every rank goes on with.
        """
        self._share_buffers()
        gradients = [(p, p.grad) for p in self.module.parameters() if p.grad is not None]
        for parameter, gradient in gradients:
            if isinstance(gradient, DTensor) and isinstance(parameter, DTensor):
                parameter.grad = gradient.redistribute(placements=parameter.placements)
        if self._root is not None:
            # FSDP has averaged over cp too, where the parts of a sequence are to be summed.
            for parameter in self.module.parameters():
                if parameter.grad is not None and id(parameter) in self._context:
                    parameter.grad.mul_(self._cp)
            return
        batch, cp = self.mesh.batch, self.mesh["cp"]
        if batch.size() == 1 and cp.size() == 1:
            return
        inside: list[Tensor] = []
        outside: list[Tensor] = []
        for parameter in self.module.parameters():
            if parameter.grad is not None:
                local = parameter.grad.to_local() if isinstance(parameter.grad, DTensor) else parameter.grad
                (inside if id(parameter) in self._context else outside).append(local)
        if cp.size() > 1:
            _all_reduce(inside, cp.get_group())
            if self.plan.context.region == "input":
                _all_reduce(outside, cp.get_group())
        if batch.size() > 1:
            _all_reduce(inside + outside, batch.get_group(), divide_by=batch.size())

    def _share_buffers(self) -> None:
        if self.mesh.batch.size() == 1:
            return
        by_type: dict[torch.dtype, list[Tensor]] = {}
        for module in self.module.modules():
            for name, buffer in module.named_buffers(recurse=False):
                if name not in module._non_persistent_buffers_set:
                    local = buffer.to_local() if isinstance(buffer, DTensor) else buffer
                    by_type.setdefault(local.dtype, []).append(local)
        for buffers in by_type.values():
            flat = torch.cat([buffer.reshape(-1) for buffer in buffers])
            dist.broadcast(flat, group=self.mesh.batch.get_group(), group_src=0)
            for part, buffer in zip(flat.split([buffer.numel() for buffer in buffers]), buffers, strict=True):
                buffer.copy_(part.view_as(buffer))

    def clip_grad_norm(self, max_norm: float) -> Tensor:
        """Scale all gradients so that their global norm is at most `max_norm`; returns the norm before.

        The square of each part is counted once, wherever it lies.
        """
        gradients = [p.grad for p in self.module.parameters() if p.grad is not None]
        squares: dict[tuple[Any, ...], list[Tensor]] = {}
        for gradient in gradients:
            groups: tuple[Any, ...] = ()
            if isinstance(gradient, DTensor):
                mesh, placements = gradient.device_mesh, gradient.placements
                groups = tuple(mesh.get_group(axis) for axis, p in enumerate(placements) if not p.is_replicate())
                gradient = gradient.to_local()
            squares.setdefault(groups, []).append(gradient.float().square().sum())
        total = torch.zeros((), device=next(self.module.parameters()).device)
        for groups, parts in squares.items():
            summed = torch.stack(parts).sum()
            for group in groups:
                dist.all_reduce(summed, group=group)
            total = total + summed
        norm = total.sqrt()
        factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
        for gradient in gradients:
            (gradient.to_local() if isinstance(gradient, DTensor) else gradient).mul_(factor)
        return norm

    def mean(self, values: Mapping[str, Any]) -> dict[str, float]:
        """Scalars averaged over the ranks with different data; the same on all ranks."""
        numbers = torch.tensor([float(value) for value in values.values()], dtype=torch.float64)
        if self.mesh.batch.size() > 1:
            numbers = numbers.to(next(self.module.parameters()).device)
            dist.all_reduce(numbers, group=self.mesh.batch.get_group())
            numbers /= self.mesh.batch.size()
        return dict(zip(values, numbers.tolist(), strict=True))

    def any(self, *flags: bool) -> list[bool]:
        """Whether each flag is true on some rank; the same on all ranks."""
        shared = torch.tensor(flags, dtype=torch.int32, device=next(self.module.parameters()).device)
        dist.all_reduce(shared, op=dist.ReduceOp.MAX)
        return [bool(flag) for flag in shared.tolist()]

    def from_first(self, function: Callable[[], T]) -> T:
        """``function()`` of the first process, on all; what it raises there is raised on all."""
        outcome: list[Any] = [None, None]
        if self.first:
            try:
                outcome[0] = function()
            except Exception as error:
                outcome[1] = error
        dist.broadcast_object_list(outcome, src=0)
        if outcome[1] is not None:
            raise outcome[1]
        return outcome[0]

    def whole(self, state: dict[str, Any]) -> dict[str, Any]:
        """`state` with whole tensors on the CPU, and the random states of all processes in place of this one's."""
        state = _laid_out(gathered(state), laid_by_heads(self.module), thirds_from_heads)
        if "rng" in state:
            every: list[Any] = [None] * dist.get_world_size()
            dist.all_gather_object(every, state["rng"])
            state |= {"rng": every[0], "rng_of_processes": every}
        return state

    def parts(self, state: dict[str, Any]) -> dict[str, Any]:
        """What `whole` gave, in the layout that this model has under its plan; tensors are still whole."""
        return _laid_out(state, laid_by_heads(self.module), heads_from_thirds)

    def own_rng(self, state: dict[str, Any]) -> dict[str, Any] | None:
        """This process's part of the random states in `state`; None, to keep the present one, if it has none."""
        every = state.get("rng_of_processes")
        if every is not None and len(every) == dist.get_world_size():
            return every[dist.get_rank()]
        return state["rng"] if self.number == 0 else None

    def agree_on_overflow(self, scaler: torch.amp.GradScaler, optimizer: torch.optim.Optimizer) -> None:
        """Skip a step of fp16 training everywhere if a gradient overflowed somewhere; call it after unscaling."""
        for found in scaler._per_optimizer_states[id(optimizer)]["found_inf_per_device"].values():
            dist.all_reduce(found, op=dist.ReduceOp.MAX)


def apply(plan: ParallelPlan, model: nn.Module) -> ParallelModel:
    """Spread `model` over the processes of the group, in place.

    Every process has built the same model (same seed). Tensor parallelism comes first, as it decides the shapes that
    the rest sees; then context parallelism, then sharding, which has to see the final parameters.

    Raises:
        ValueError: the plan does not fit the number of processes or the model; raised before any communication.
        RuntimeError: there is no process group and the environment announces none.
    """
    join_group()
    sizes = plan.mesh.resolve(dist.get_world_size())
    device = next(model.parameters()).device.type
    mesh = plan.mesh.build(device)
    if sizes.tp > 1:
        apply_tensor_parallel(model, mesh["tp"], plan.placements)
    if sizes.cp > 1:
        apply_context_parallel(model, mesh["cp"], plan.context)
    return ParallelModel(model, plan, mesh)


def block_lists(model: nn.Module) -> Iterator[nn.ModuleList | nn.Sequential]:
    """The outermost lists of at least two modules of one type: the blocks of a transformer, say."""
    for module in model.children():
        kinds = {type(child) for child in module.children()}
        if isinstance(module, nn.ModuleList | nn.Sequential) and len(module) > 1 and len(kinds) == 1:
            yield module
        else:
            yield from block_lists(module)


class _Call(nn.Module):
    """The root that FSDP sees: whatever is called in it finds the root's parameters gathered."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(*arguments)


def _shard(module: nn.Module, mesh: Mesh) -> _Call:
    """Shard each block, then what is left, over dp_shard x cp, with replicas over dp_replicate."""
    from torch.distributed.fsdp import fully_shard  # its import takes a second, which other plans need not wait for

    for blocks in block_lists(module):
        for block in blocks:
            fully_shard(block, mesh=mesh.fsdp)
    root = _Call(module)
    fully_shard(root, mesh=mesh.fsdp)
    return root


def _laid_out(value: Any, heads: dict[str, int], change: Callable[[Tensor, int], Tensor], name: str = "") -> Any:
    """Nested `value` with each tensor that stands below a name of `heads` changed, moments of optimisers among them."""
    if isinstance(value, dict):
        return {key: _laid_out(item, heads, change, key if key in heads else name) for key, item in value.items()}
    return change(value, heads[name]) if name and isinstance(value, Tensor) and value.ndim else value


def _rows(batch: Any, ranks: int, rank: int) -> Any:
    if isinstance(batch, Tensor):
        if batch.ndim == 0 or batch.shape[0] % ranks:
            raise ValueError(f"a batch of shape {list(batch.shape)} cannot be divided over {ranks} data-parallel ranks")
        return batch.chunk(ranks)[rank]
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*[_rows(item, ranks, rank) for item in batch])
    if isinstance(batch, tuple | list):
        return type(batch)([_rows(item, ranks, rank) for item in batch])
    if isinstance(batch, dict):
        return {name: _rows(item, ranks, rank) for name, item in batch.items()}
    return batch


def _all_reduce(tensors: list[Tensor], group: Any, divide_by: int = 1) -> None:
    """Sum `tensors` over `group`, in place, some 8 million elements at a time."""
    bucket: list[Tensor] = []
    for position, tensor in enumerate(tensors):
        bucket.append(tensor)
        following = tensors[position + 1] if position + 1 < len(tensors) else None
        size = sum(t.numel() for t in bucket)
        if following is None or following.dtype != tensor.dtype or size + following.numel() > BUCKET_ELEMENTS:
            flat = torch.cat([t.reshape(-1) for t in bucket])
            dist.all_reduce(flat, group=group)
            for part, t in zip(flat.div_(divide_by).split([t.numel() for t in bucket]), bucket, strict=True):
                t.copy_(part.view_as(t))
            bucket = []
