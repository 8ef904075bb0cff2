"""Optimisers and schedules of a config, in the form that a Trainer takes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from flambeau.training.distillation.hooks import find_module
from flambeau.training.distillation.names import OPTIMIZERS, SCHEDULES, find
from flambeau.training.distillation.tags import ConfigError
from flambeau.training.processes import like


@dataclass
class OptimizerPlan:
    """What a stage optimises with: kept for a following stage that names no optimiser.

    factory: of ``torch.optim``. kwargs: its arguments, rates already scaled. groups: positions of the parameters among
    the trainable ones of the stage, with the arguments of their own. state: position -> what the optimiser knows of it.
    """

    factory: Any
    kwargs: dict[str, Any]
    groups: list[tuple[list[int], dict[str, Any]]]
    state: dict[int, dict[str, Any]]

    def rates(self) -> list[float]:
        """The learning rate of each group."""
        default = self.kwargs.get("lr", 1e-3)
        return [float(kwargs.get("lr", default)) for _, kwargs in self.groups]


def plan_optimizer(
    section: Mapping[str, Any], stage: nn.Module, lr_factor: float, allow: Sequence[str]
) -> OptimizerPlan:
    """The plan of an ``optimizer`` section; parameters that no entry of ``module_wise_configs`` names are frozen.

    Args:
        section: key, kwargs, and ``module_wise_configs``: a list of ``{module: path, kwargs: {lr: ...}}`` whose paths
            are the student's, or "student.path", "teacher.path", "criterion.path" of the stage.
        lr_factor: multiplies every learning rate; the section stays as it is.

    Raises:
        ConfigError: an unknown optimiser, a path that the stage does not have, or a parameter that two entries name.
    """
    factory = find(section.get("key"), OPTIMIZERS, allow, "optimizer: key")
    kwargs = _scaled(section.get("kwargs") or {}, lr_factor)
    entries = section.get("module_wise_configs") or section.get("module_wise_kwargs") or []
    trainable = [parameter for parameter in stage.parameters() if parameter.requires_grad]
    if not entries:
        return OptimizerPlan(factory, kwargs, [(list(range(len(trainable))), {})], {})
    owner: dict[int, int] = {}
    for number, entry in enumerate(entries):
        for parameter in _module(stage, entry).parameters():
            if parameter.requires_grad and owner.setdefault(id(parameter), number) != number:
                raise ConfigError(f"module_wise_configs: {entry['module']} holds parameters of an earlier entry")
    for parameter in trainable:
        parameter.requires_grad_(id(parameter) in owner)
    kept = [parameter for parameter in trainable if parameter.requires_grad]
    groups = []
    for number, entry in enumerate(entries):
        positions = [position for position, parameter in enumerate(kept) if owner[id(parameter)] == number]
        if not positions:
            raise ConfigError(f"module_wise_configs: {entry['module']} has no trainable parameter")
        groups.append((positions, _scaled(entry.get("kwargs") or {}, lr_factor)))
    return OptimizerPlan(factory, kwargs, groups, {})


def keep_optimizer(
    plan: OptimizerPlan, used: torch.optim.Optimizer, before: Sequence[nn.Parameter], stage: nn.Module
) -> OptimizerPlan:
    """The plan of a stage that names no optimiser: the last one, with its present rates and what it remembers.

    Parameters that it did not have join the first group.

    Args:
        plan, used: of the last stage.
        before: the last stage's trainable parameters, in order.
        stage: the new one.
    """
    trainable = [parameter for parameter in stage.parameters() if parameter.requires_grad]
    positions = {id(parameter): position for position, parameter in enumerate(before)}
    group_of = {position: number for number, (members, _) in enumerate(plan.groups) for position in members}
    groups: list[tuple[list[int], dict[str, Any]]] = [
        ([], {**kwargs, "lr": float(group["lr"])})
        for (_, kwargs), group in zip(plan.groups, used.param_groups, strict=True)
    ]
    remembered = _state_by_position(plan, used)
    state = {}
    for position, parameter in enumerate(trainable):
        old = positions.get(id(parameter))
        groups[group_of.get(old, 0) if old is not None else 0][0].append(position)
        if old in remembered:
            state[position] = remembered[old]
    return OptimizerPlan(plan.factory, plan.kwargs, [group for group in groups if group[0]], state)


def build_optimizer(plan: OptimizerPlan, built: _Built, parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimiser of `plan` over the trainable parameters of a stage, or of a copy of it, in their order."""
    groups = [{"params": [parameters[position] for position in members], **kwargs} for members, kwargs in plan.groups]
    optimizer = plan.factory(groups, **plan.kwargs)
    for position, values in plan.state.items():
        parameter = parameters[position]
        optimizer.state[parameter] = {
            name: like(parameter, value.clone()) if isinstance(value, Tensor) else value
            for name, value in values.items()
        }
    built.optimizer = optimizer
    return optimizer


def optimizer_factory(plan: OptimizerPlan) -> tuple[Any, _Built]:
    """``optimizer(parameters)`` for a Trainer, and where the optimiser that it makes is found afterwards."""
    built = _Built()
    return partial(build_optimizer, plan, built), built


class _Built:
    """Holds the last optimiser; without attributes of its own, as it does not tell one training from another."""

    __slots__ = ("optimizer",)
    optimizer: torch.optim.Optimizer

    @property
    def is_set(self) -> bool:
        return hasattr(self, "optimizer")


@dataclass(frozen=True)
class TableSchedule:
    """A schedule of a table of factors, one for each `every` batches; the last stays. accumulate: batches a step."""

    factors: tuple[float, ...]
    every: int
    accumulate: int

    def __call__(self, step: int, total: int) -> float:
        return self.factors[min(step * self.accumulate // self.every, len(self.factors) - 1)]


def plan_schedule(
    section: Mapping[str, Any],
    plan: OptimizerPlan,
    *,
    batches: int,
    steps: int,
    accumulate: int,
    allow: Sequence[str],
) -> Any:
    """The ``scheduler`` section as ``schedule(step, total) -> factor``.

    A scheduler of ``torch.optim.lr_scheduler`` is run ahead on a stand-in optimiser with the same rates. It advances
    once an epoch with ``scheduling_step: 0``, and with k > 0 after every k batches, as far as these end a step.

    Args:
        batches: of an epoch.
        steps: optimiser steps of the stage.
        accumulate: batches of a step.

    Raises:
        ConfigError: an unknown scheduler, wrong arguments, one that needs a metric (ReduceLROnPlateau), or one that
            changes the rates of several groups by different factors.
    """
    key = section.get("key")
    if key == "ReduceLROnPlateau":
        raise ConfigError("scheduler: ReduceLROnPlateau needs a metric of each epoch; choose one that knows its steps")
    factory = find(key, SCHEDULES, allow, "scheduler: key")
    kwargs = dict(section.get("kwargs") or {})
    if not getattr(factory, "__module__", "").startswith("torch.optim"):
        try:
            return factory(**kwargs) if isinstance(factory, type) else partial(factory, **kwargs)
        except TypeError as error:
            raise ConfigError(f"scheduler: {key}: {error}") from error
    unit = section.get("scheduling_step") or 0
    if not isinstance(unit, int) or unit < 0:
        raise ConfigError(f"scheduling_step: expected 0 (each epoch) or a number of batches, got {unit!r}")
    every = batches if unit == 0 else math.lcm(unit, accumulate)
    rates = plan.rates()
    groups = [{"params": [nn.Parameter(torch.zeros(1))], "lr": rate} for rate in rates]
    stand_in = torch.optim.SGD(groups, lr=rates[0], momentum=0.9)
    try:
        scheduler = factory(stand_in, **kwargs)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"scheduler: {key}: {error}") from error
    factors = []
    for _ in range(-(-steps * accumulate // every)):
        now = [group["lr"] / rate for group, rate in zip(stand_in.param_groups, rates)]
        if any(not math.isclose(factor, now[0], rel_tol=1e-6, abs_tol=1e-12) for factor in now):
            raise ConfigError(f"scheduler: {key} changes the groups' rates by different factors, {now}")
        factors.append(now[0])
        stand_in.step()
        try:
            scheduler.step()
        except ValueError:  # OneCycleLR has an end
            break
    return TableSchedule(tuple(factors), every, accumulate)


def _state_by_position(plan: OptimizerPlan, used: torch.optim.Optimizer) -> dict[int, dict[str, Any]]:
    state = {}
    for (members, _), group in zip(plan.groups, used.param_groups, strict=True):
        for position, parameter in zip(members, group["params"], strict=True):
            values = used.state.get(parameter)
            if values:
                state[position] = {name: _whole(value) for name, value in values.items()}
    return state


def _whole(value: Any) -> Any:
    if hasattr(value, "full_tensor"):
        return value.full_tensor()
    return value.detach().clone() if isinstance(value, Tensor) else value


def _module(stage: nn.Module, entry: Any) -> nn.Module:
    if not isinstance(entry, Mapping) or "module" not in entry:
        raise ConfigError(f"module_wise_configs: expected module and kwargs, got {entry!r}")
    path = entry["module"]
    head, _, rest = path.partition(".")
    side = getattr(stage, head, None) if head in ("student", "teacher", "criterion") else stage.student
    inner = rest if head in ("student", "teacher", "criterion") else path
    if side is None:
        raise ConfigError(f"module_wise_configs: {path}: the stage has no {head}")
    try:
        if head == "criterion":
            return find_module(side, inner or ".")
        auxiliary = inner.removeprefix("auxiliary").removeprefix(".")
        if inner.split(".")[0] == "auxiliary" and side.auxiliary is not None:
            return find_module(side.auxiliary, auxiliary or ".")
        return find_module(side.model, inner or ".")
    except ValueError as error:
        raise ConfigError(f"module_wise_configs: {error}") from None


def _scaled(kwargs: Mapping[str, Any], lr_factor: float) -> dict[str, Any]:
    """A copy of `kwargs` with its learning rate multiplied."""
    copied = dict(kwargs)
    if "lr" in copied:
        if not isinstance(copied["lr"], (int, float)) or isinstance(copied["lr"], bool):
            raise ConfigError(f"lr: expected a number, got {copied['lr']!r}")
        copied["lr"] = copied["lr"] * lr_factor
    return copied
