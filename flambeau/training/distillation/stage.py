"""One stage of distillation as a module: the networks, what is recorded of them, and what is minimised."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from flambeau.training.distillation.cache import TeacherCache
from flambeau.training.distillation.hooks import IO, SELF, ForwardHookManager

Forward = Callable[[nn.Module, Any, Any, Any], Any]


def forward_batch_only(model: nn.Module, x: Any, y: Any = None, supp: Any = None) -> Any:
    """``model(x)``."""
    return model(x)


def forward_batch_as_kwargs(model: nn.Module, x: Mapping[str, Any], y: Any = None, supp: Any = None) -> Any:
    """``model(**x)``, as models of transformers are called."""
    return model(**x)


def forward_batch_target(model: nn.Module, x: Any, y: Any, supp: Any = None) -> Any:
    """``model(x, y)``, as detection models are called in training."""
    return model(x, y)


def forward_batch_supp_dict(model: nn.Module, x: Any, y: Any, supp: Any) -> Any:
    """``model(x, supp)``."""
    return model(x, supp)


def forward_batch4sskd(model: nn.Module, x: Tensor, y: Any = None, supp: Any = None) -> Any:
    """``model(x)`` of V versions of each image, [B, V, C, H, W], as one batch (Xu et al. 2020, arXiv 2006.07114)."""
    return model(x.flatten(0, 1))


class Side(nn.Module):
    """The student or the teacher of a stage: its forward pass, its hooks, and what runs after it.

    A network without trainable parameters is run in evaluation mode and without gradients, and is no part of this
    module's parameters: it is neither saved with a training nor averaged nor sharded, but it moves with ``.to``.

    Args:
        model: also wrapped or compiled.
        hooks: ``{"input": [paths], "output": [paths]}``; a leading "+" of a path is dropped.
        auxiliary: a module with ``secondary_forward(io_dict)``, called after the network; see
            :mod:`flambeau.training.distillation.auxiliary`.
        forward: ``forward(model, x, y, supp)``.

    Raises:
        ValueError: a path that the model does not have, with the nearest ones.
    """

    def __init__(
        self,
        model: nn.Module,
        hooks: Mapping[str, Any] | None = None,
        auxiliary: nn.Module | None = None,
        forward: Forward = forward_batch_only,
    ):
        super().__init__()
        self.updatable = any(parameter.requires_grad for parameter in model.parameters())
        if self.updatable:
            self.network = model
        else:
            self._fixed = (model.eval(),)  # in a tuple it is no submodule
        self.auxiliary = auxiliary
        self.run = forward
        inputs, outputs = (list((hooks or {}).get(kind) or ()) for kind in ("input", "output"))
        self.hooks = ForwardHookManager()
        for path in dict.fromkeys([*inputs, *outputs]):
            name = path.removeprefix("+")
            if name != SELF:  # what goes in and out of the whole is known without a hook
                self.hooks.add_hook(model, name, path in inputs, path in outputs, name=path)

    @property
    def model(self) -> nn.Module:
        """The network, as it was given."""
        return self.network if self.updatable else self._fixed[0]

    def record(self, x: Any, y: Any = None, supp: Any = None) -> IO:
        """Run the network; returns what was recorded, and its own input and output under "."."""
        if not self.updatable and self.model.training:
            self.model.eval()  # someone else holds the teacher too
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.updatable):
            output = self.run(self.model, x, y, supp)
        return {**self.hooks.pop_io_dict(), SELF: {"input": x, "output": output}}

    def forward(self, x: Any, y: Any = None, supp: Any = None) -> IO:
        return self.complete(self.record(x, y, supp))

    def complete(self, io: IO) -> IO:
        """`io` with what the auxiliary module adds to it."""
        if self.auxiliary is not None:
            self.auxiliary.secondary_forward(io)
        return io

    def train(self, mode: bool = True) -> Side:
        super().train(mode)
        if not self.updatable:
            self.model.eval()
        return self

    def _apply(self, fn: Any, recurse: bool = True) -> Side:
        super()._apply(fn, recurse)
        if not self.updatable:
            self.model._apply(fn)
        return self

    def close(self) -> None:
        """Remove the hooks."""
        self.hooks.close()


class Stage(nn.Module):
    """A student, a teacher if there is one, and their losses: ``stage(x, y, supp)`` is a dict with "loss".

    Args:
        student, teacher: see :class:`Side`.
        criterion: called with student io, teacher io, model losses, labels and `supp`.
        extract_model_loss: ``extract_model_loss(student output, y, supp) -> dict`` of losses that the student returns
            itself.
        cache: of the teacher's recorded tensors, by ``supp["index"]``.

    Raises:
        ValueError: a cache with a teacher that is trained, or without a teacher.
    """

    def __init__(
        self,
        student: Side,
        teacher: Side | None,
        criterion: nn.Module,
        extract_model_loss: Callable[[Any, Any, Any], Mapping[str, Tensor]] | None = None,
        cache: TeacherCache | None = None,
    ):
        super().__init__()
        if cache is not None and (teacher is None or teacher.updatable):
            raise ValueError("cache_output: a teacher with requires_grad: True changes, its outputs cannot be cached")
        self.student = student
        self.teacher = teacher
        self.criterion = criterion
        self.extract_model_loss = extract_model_loss
        self.cache = _Shared(cache)

    def forward(self, x: Any, y: Any = None, supp: Mapping[str, Any] | None = None) -> dict[str, Tensor]:
        teacher_io = self._teacher_io(x, y, supp)
        student_io = self.student(x, y, supp)
        losses = None
        if self.extract_model_loss is not None:
            losses = self.extract_model_loss(student_io[SELF]["output"], y, supp)
        return self.criterion(student_io, teacher_io, losses, y, supp)

    def _teacher_io(self, x: Any, y: Any, supp: Mapping[str, Any] | None) -> IO:
        if self.teacher is None:
            return {}
        teacher, cache = self.teacher, self.cache.value
        if cache is None:
            return teacher(x, y, supp)
        if supp is None or "index" not in supp:
            raise ValueError("cache_output: batches need the samples' numbers, as a third item int64 [B]")

        def outputs() -> IO:
            io = teacher.record(x, y, supp)
            io[SELF].pop("input")
            return io

        return teacher.complete(cache.fetch(supp["index"], outputs))

    def close(self) -> None:
        """Remove the hooks, write what the cache holds, and make every parameter trainable again."""
        for side in (self.student, self.teacher):
            if side is not None:
                side.close()
                for parameter in (*side.parameters(), *side.model.parameters()):
                    parameter.requires_grad_(parameter.is_floating_point() or parameter.is_complex())
        if self.cache.value is not None:
            self.cache.value.flush()


def stage_loss(stage: nn.Module, batch: Any, identity: Any = None) -> dict[str, Tensor]:
    """The loss of a batch for :meth:`flambeau.training.Trainer.fit`. identity: tells one training from another."""
    return stage(*split_batch(batch))


def split_batch(batch: Any) -> tuple[Any, Any, Any]:
    """``(x, y, supp)`` of a batch: a tuple of two or three, or a dict.

    A tensor in third place is the samples' numbers.
    Of a dict, "labels" and "index" are taken out for the losses; the models are given all but "index".

    Raises:
        TypeError: anything else.
    """
    if isinstance(batch, Mapping):
        x = {name: value for name, value in batch.items() if name != "index"}
        return x, batch.get("labels"), {"index": batch["index"]} if "index" in batch else None
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        return batch[0], batch[1], None
    if isinstance(batch, (tuple, list)) and len(batch) == 3:
        supp = batch[2]
        return batch[0], batch[1], {"index": supp} if isinstance(supp, Tensor) else supp
    got = f"{type(batch).__name__} of {len(batch)}" if isinstance(batch, (tuple, list)) else type(batch).__name__
    raise TypeError(f"batch: expected (x, y), (x, y, supp) or a dict, got {got}")


class _Shared:
    """A value that copies of a stage have in common."""

    def __init__(self, value: Any):
        self.value = value

    def __deepcopy__(self, memo: Any) -> _Shared:
        return self
