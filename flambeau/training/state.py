"""Everything that a training is made of at one step, as one nested state keyed by parameter names."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from flambeau.data.seeding import derive_seed
from flambeau.training.average import WeightAverage
from flambeau.training.checkpoint import CheckpointError
from flambeau.training.processes import like


class TrainingState:
    """Model, optimiser and what else changes while training, with ``state_dict`` and ``load_state_dict``.

    The state is keyed by fully qualified parameter names without the prefixes of ``torch.compile``, so a checkpoint of
    a compiled model continues an uncompiled one and the reverse, and each entry can be sharded on its own.

    Args:
        model: the module that is trained, on its device.
        optimizer: over parameters of `model`.
        scaler: loss scaler of fp16 training, or None.
        average: moving average of the weights, or None.
        schedule: its state is kept if it has ``state_dict``.
        generator: the generator that the data is drawn with.

    Raises:
        ValueError: the optimiser holds a parameter that is not one of the model's.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        scaler: torch.amp.GradScaler | None,
        average: WeightAverage | None,
        schedule: Any,
        generator: torch.Generator,
    ):
        self.model = model
        self.optimizer = optimizer
        self.scaler = scaler
        self.average = average
        self.schedule = schedule
        self.generator = generator
        self.names = parameter_names(model, optimizer)
        self.step = 0
        self.seconds = 0.0
        self.finished = False
        self.best: dict[str, float] | None = None
        self.best_weights: dict[str, Tensor] | None = None
        self.stale = 0  # evaluations since the best

    def state_dict(self) -> dict[str, Any]:
        """Plain data and tensors; the tensors are those in use, not copies."""
        names = self.names
        optimizer = self.optimizer.state_dict()
        state = {
            "progress": {
                "step": self.step,
                "seconds": self.seconds,
                "finished": self.finished,
                "best": self.best,
                "stale": self.stale,
            },
            "model": weights(self.model),
            "optimizer": {
                "groups": [
                    {**group, "params": [names[index] for index in group["params"]]}
                    for group in optimizer["param_groups"]
                ],
                "state": {names[index]: values for index, values in optimizer["state"].items()},
            },
            "rng": rng_state(device_of(self.model), self.generator),
        }
        if self.scaler is not None:
            state["scaler"] = self.scaler.state_dict()
        if self.average is not None:
            state["average"] = self.average.state_dict()
        if self.best_weights is not None:
            state["best"] = self.best_weights
        if hasattr(self.schedule, "state_dict"):
            state["schedule"] = self.schedule.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`, in place.

        Raises:
            CheckpointError: the state is of another model or optimiser; the message names what differs.
        """
        try:
            load_weights(self.model, state["model"])
            self._load_optimizer(state["optimizer"])
            if self.scaler is not None:
                self.scaler.load_state_dict(state["scaler"])
            if self.average is not None:
                self.average.load_state_dict(state["average"])
            if hasattr(self.schedule, "load_state_dict"):
                self.schedule.load_state_dict(state["schedule"])
            progress = state["progress"]
            self.step, self.seconds, self.finished = progress["step"], progress["seconds"], progress["finished"]
            self.best, self.stale = progress["best"], progress["stale"]
            self.best_weights = state.get("best")
            if state["rng"] is not None:
                set_rng_state(device_of(self.model), self.generator, state["rng"])
        except KeyError as error:
            raise CheckpointError(f"the checkpoint has no entry {error}") from None

    def _load_optimizer(self, state: dict[str, Any]) -> None:
        indices = {name: index for index, name in self.names.items()}
        unknown = [name for group in state["groups"] for name in group["params"] if name not in indices]
        if unknown:
            raise CheckpointError(f"the checkpoint optimises parameters that are not optimised here: {unknown[:5]}")
        live = dict(self.model.named_parameters())
        parameters = {plain_name(name): parameter for name, parameter in live.items()}
        numbered = {
            indices[name]: {key: like(parameters[name], value) for key, value in values.items()}
            for name, values in state["state"].items()
        }
        groups = [{**group, "params": [indices[name] for name in group["params"]]} for group in state["groups"]]
        try:
            self.optimizer.load_state_dict({"state": numbered, "param_groups": groups})
        except ValueError as error:
            raise CheckpointError(f"the checkpoint is of another optimiser: {error}") from None
        # load_state_dict casts floating-point state to the parameter's dtype, which would round fp32 moments of a
        # bf16 parameter; exact resume needs the dtype that was saved.
        for index, parameter in enumerate(p for group in self.optimizer.param_groups for p in group["params"]):
            for key, saved in numbered.get(index, {}).items():
                loaded = self.optimizer.state[parameter][key]
                if isinstance(saved, Tensor) and saved.dtype != loaded.dtype:
                    self.optimizer.state[parameter][key] = saved.to(loaded.device)


def plain_name(name: str) -> str:
    """A parameter name without the prefixes that ``torch.compile`` adds."""
    return name.replace("_orig_mod.", "")


def parameter_names(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[int, str]:
    """Name of each parameter by its position in the optimiser.

    Raises:
        ValueError: the optimiser holds a parameter that is not one of the model's.
    """
    names = {id(parameter): plain_name(name) for name, parameter in model.named_parameters()}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    foreign = sum(id(parameter) not in names for parameter in parameters)
    if foreign:
        raise ValueError(f"optimizer holds {foreign} parameters that are not the model's; make them part of the model")
    return {index: names[id(parameter)] for index, parameter in enumerate(parameters)}


def weights(model: nn.Module) -> dict[str, Any]:
    """The model's ``state_dict`` by plain names; of tied tensors only the first name."""
    seen: set[int] = set()
    kept = {}
    for name, value in model.state_dict(keep_vars=True).items():
        if id(value) not in seen:
            kept[plain_name(name)] = value.detach() if isinstance(value, Tensor) else value
        if isinstance(value, Tensor):
            seen.add(id(value))
    return kept


def load_weights(model: nn.Module, saved: dict[str, Any]) -> None:
    """Copy `saved` (of :func:`weights`) into the model, strictly.

    Raises:
        CheckpointError: other names, shapes or dtypes than the model's.
    """
    live = weights(model)
    missing, unexpected = sorted(live.keys() - saved.keys()), sorted(saved.keys() - live.keys())
    if missing or unexpected:
        raise CheckpointError(f"the checkpoint is of another model: it lacks {missing[:5]} and adds {unexpected[:5]}")
    for name, value in live.items():
        if isinstance(value, Tensor) and (value.shape, value.dtype) != (saved[name].shape, saved[name].dtype):
            raise CheckpointError(
                f"{name} is {value.dtype} {list(value.shape)} in the model and "
                f"{saved[name].dtype} {list(saved[name].shape)} in the checkpoint"
            )
    actual = {plain_name(name): name for name in reversed(model.state_dict(keep_vars=True))}
    placed = {actual[name]: like(live[name], value) for name, value in saved.items()}
    model.load_state_dict(placed, strict=False)


def device_of(model: nn.Module) -> torch.device:
    """Where the model's first parameter (or buffer) is; the CPU for a model without any."""
    tensor = next(model.parameters(), None)
    if tensor is None:
        tensor = next(model.buffers(), None)
    return torch.device("cpu") if tensor is None else tensor.device


def rng_state(device: torch.device, generator: torch.Generator | None = None) -> dict[str, Any]:
    """State of the global generators of Python, NumPy and torch (with the accelerator's), and of `generator`."""
    algorithm, keys, *rest = np.random.get_state(legacy=True)
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": (algorithm, torch.from_numpy(np.asarray(keys, np.int64)), *rest),
        "torch": torch.get_rng_state(),
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    if generator is not None:
        state["generator"] = generator.get_state()
    return state


def set_rng_state(device: torch.device, generator: torch.Generator | None, state: dict[str, Any]) -> None:
    """Restore what :func:`rng_state` gave. What it lacks (the state came from another device) stays as it is."""
    random.setstate(state["python"])
    algorithm, keys, *rest = state["numpy"]
    np.random.set_state((algorithm, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
    if generator is not None:
        generator.set_state(state["generator"])


@contextmanager
def seeded(seed: int, device: torch.device, process: int = 0) -> Iterator[None]:
    """Seed the global generators, and put them back as they were at the end. process: each has its own streams."""
    before = rng_state(device)
    other = [f"process {process}"] if process else []
    random.seed(derive_seed(seed, "python", *other))
    np.random.seed(derive_seed(seed, "numpy", *other) % 2**32)
    torch.manual_seed(derive_seed(seed, "torch", *other))
    try:
        yield
    finally:
        set_rng_state(device, None, before)


@contextmanager
def kept_rng(device: torch.device) -> Iterator[None]:
    """Put the global generators back at the end, so that what happens inside does not change what comes after."""
    before = rng_state(device)
    try:
        yield
    finally:
        set_rng_state(device, None, before)
