"""The one training loop: steps or epochs, accumulation, precision, averaging, evaluation, and exact resume."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from flambeau.training import checkpoint
from flambeau.training.average import WeightAverage
from flambeau.training.checkpoint import CheckpointError
from flambeau.training.identity import describe, differences
from flambeau.training.loop import Data, Loop, Loss
from flambeau.training.loop import to_device as to_device
from flambeau.training.metrics import History
from flambeau.training.parallel.plan import ParallelPlan
from flambeau.training.precision import Precision, as_precision
from flambeau.training.processes import OneProcess, Processes
from flambeau.training.progress import Progress
from flambeau.training.state import TrainingState, device_of, load_weights, seeded, weights


@dataclass
class Fit:
    """What a training did.

    Attributes:
        history: one entry a step, ``{"step": 1, "loss": ..., "lr": ...}``, with ``grad_norm`` where gradients are
            clipped, the loss function's other entries, and the evaluation's values in the steps that were evaluated.
        steps: optimiser steps taken, over all interruptions.
        seconds: time spent, over all interruptions.
        best: with ``select``, the values of the best evaluation and its ``step``; otherwise None.
    """

    history: list[dict[str, Any]] = field(default_factory=list)
    steps: int = 0
    seconds: float = 0.0
    best: dict[str, float] | None = None


@dataclass(frozen=True, kw_only=True)
class Trainer:
    """How to train: everything but the model, the loss and the data. The same trainer can fit any number of models.

    Args:
        steps: optimiser steps.
        epochs: passes over the data (of a known length). With both, the training ends at whichever comes first.
        optimizer: ``optimizer(parameters)``, usually a ``functools.partial`` of a ``torch.optim`` class.
        schedule: ``schedule(step, total)``, a factor on the optimiser's own rates; None keeps them.
        precision: ``"fp32"`` (the parameters' own), ``"bf16"``, ``"fp16"`` (mixed precision), or a
            :class:`~flambeau.training.precision.Precision`.
        accumulate: batches whose gradients are averaged for one step.
        clip: largest norm of the gradient over all parameters; longer ones are scaled down to it.
        ema: decay of a moving average of the weights; the model is evaluated and returned with the average.
        evaluate_every: steps between evaluations; None evaluates ten times. The last step is always evaluated.
        select: ``"min"`` or ``"max"`` of the evaluation's first value: the model is returned as it was at its best.
        patience: stop after so many evaluations in a row without a new best.
        save_every: steps between checkpoints; None saves once a minute. The end is always saved.
        keep: checkpoints that are kept.
        parallel: how the processes of a group share the work: a :class:`~flambeau.training.parallel.ParallelPlan`, or
            the text of one, such as ``"fsdp2 x tp2"``. All of them make the same call; start them with ``torchrun``.

    Raises:
        ValueError: neither steps nor epochs, or a value out of its range.
        TypeError: an optimiser or schedule that cannot be called.
    """

    steps: int | None = None
    epochs: int | None = None
    optimizer: Callable[..., torch.optim.Optimizer] = partial(torch.optim.Adam, lr=1e-3)
    schedule: Callable[[int, int], float] | None = None
    precision: str | Precision = "fp32"
    accumulate: int = 1
    clip: float | None = None
    ema: float | None = None
    evaluate_every: int | None = None
    select: Literal["min", "max"] | None = None
    patience: int | None = None
    save_every: int | None = None
    keep: int = 2
    parallel: str | ParallelPlan | None = None

    def __post_init__(self) -> None:
        if self.steps is None and self.epochs is None:
            raise ValueError("give steps or epochs: a training needs an end")
        for name in ("steps", "epochs", "accumulate", "evaluate_every", "patience", "save_every", "keep"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"clip must be positive, got {self.clip}")
        if self.ema is not None and not 0 <= self.ema < 1:
            raise ValueError(f"ema must lie in [0, 1), got {self.ema}")
        if self.select not in (None, "min", "max"):
            raise ValueError(f"select must be 'min', 'max' or None, got {self.select!r}")
        if self.patience is not None and self.select is None:
            raise ValueError("patience needs select='min' or 'max' to say what a better evaluation is")
        for name in ("optimizer", "schedule"):
            value = getattr(self, name)
            if value is not None and not callable(value):
                raise TypeError(f"{name} must be callable, got {type(value).__name__}")
        as_precision(self.precision)
        if isinstance(self.parallel, str):
            ParallelPlan.from_string(self.parallel)

    def total(self, data: Data) -> int:
        """Optimiser steps of a training on `data`.

        Raises:
            ValueError: only epochs are given, and the data has no length.
        """
        if self.epochs is None:
            assert self.steps is not None
            return self.steps
        if not hasattr(data, "__len__"):
            if self.steps is None:
                raise ValueError("epochs need data with a length (Batches); give steps for a function of the step")
            return self.steps
        in_epochs = max(1, self.epochs * len(data) // self.accumulate)
        return in_epochs if self.steps is None else min(self.steps, in_epochs)

    def fit(
        self,
        model: nn.Module,
        loss: Loss,
        data: Data,
        *,
        evaluate: Callable[[Any], Mapping[str, float]] | None = None,
        folder: Path | str | None = None,
        progress: Progress | None = None,
        seed: int = 0,
    ) -> Fit:
        """Train `model` in place, on the device it is on, and leave it in evaluation mode.

        The result depends only on the arguments: the global random generators are seeded from `seed` and put back at
        the end, and evaluations draw from streams of their own. With `folder`, a training that was killed continues
        from its newest whole checkpoint and ends with the same weights, bit for bit, as one that was not (same
        machine and versions, and on a GPU as far as its kernels are deterministic); one that had ended returns at once.

        Args:
            model: any module; it may be compiled. Parameters without gradient are left as they are.
            loss: ``loss(model, batch)``, a scalar, or a dict with ``"loss"`` whose other entries are logged.
            data: :class:`~flambeau.data.Batches`, or a function ``(step, generator)`` that returns a batch. Its tensors
                are moved to the model's device. With accumulation `step` counts batches.
            evaluate: ``evaluate(model)``, called in evaluation mode, without gradients and outside mixed precision;
                returns named values.
            folder: for checkpoints, ``metrics.jsonl``, ``tensorboard/`` and, at the end, ``model.safetensors``. It is
                refused if it holds a training of other settings, seed, parameters, size of the data or functions (by
                name; what a function closes over and what the data contains are not compared).
            progress: for example :class:`~flambeau.training.progress.ConsoleProgress`.
            seed: for the order of the data, dropout and whatever else draws random numbers.

        Raises:
            FloatingPointError: the loss became NaN or infinite; the message names the step and the last finite loss.
            Interrupted: SIGINT or SIGTERM; the step was finished, and saved if there is a folder.
            CheckpointError: the folder holds another training; the message names what differs.
            OSError: a checkpoint could not be written (a full disk); the one before it is whole.
        """
        if self.select is not None and evaluate is None:
            raise ValueError(f"select={self.select!r} needs evaluate")
        total = self.total(data)
        device = device_of(model)
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise ValueError(f"{type(model).__name__} has no parameter that requires a gradient")
        identity = self._identity(model=model, loss=loss, data=data, evaluate=evaluate, seed=seed, total=total)
        # A plan splits a copy, so that the model itself stays whole, and the same on every process.
        trained, processes = (model, OneProcess(model)) if self.parallel is None else _spread(self.parallel, model)
        parameters = [parameter for parameter in trained.parameters() if parameter.requires_grad]
        root = processes.from_first(lambda: None if folder is None else Path(folder))

        with ExitStack() as stack:
            stack.enter_context(seeded(seed, device, processes.number))
            stack.enter_context(torch.enable_grad())
            if not trained.training:
                trained.train()
            precision = as_precision(self.precision)
            optimizer = self.optimizer(parameters)
            schedule = copy.deepcopy(self.schedule) if hasattr(self.schedule, "state_dict") else self.schedule
            state = TrainingState(
                trained,
                optimizer,
                scaler=precision.scaler(device),
                average=None if self.ema is None else WeightAverage(trained, self.ema),
                schedule=schedule,
                generator=torch.Generator().manual_seed(seed),
            )
            base_rates = [group["lr"] for group in optimizer.param_groups]
            history = History(root if processes.first else None, total)
            stack.callback(history.close)
            if root is not None:
                saved = processes.from_first(lambda: _saved(root / "checkpoints", history, identity))
                history.entries = processes.from_first(lambda: history.entries)
                if saved is not None:
                    state.load_state_dict({**processes.parts(saved), "rng": processes.own_rng(saved)})
            was_finished = state.finished
            if not was_finished:
                stack.enter_context(precision.attach(trained, optimizer))
                loop = Loop(
                    self, state, history, loss, data, evaluate, root, identity, total, schedule, base_rates, precision,
                    processes,
                )  # fmt: skip
                loop.run(progress if processes.first else None)
            if state.best_weights is not None:
                load_weights(trained, state.best_weights)
            elif state.average is not None:
                state.average.copy_to_model()
            if trained is not model:
                load_weights(model, processes.whole(weights(trained)))
            model.eval()
            if root is not None and not (was_finished and (root / "model.safetensors").exists()):
                processes.from_first(lambda: checkpoint.save_weights(root / "model.safetensors", weights(model)))
        return Fit(history.entries, state.step, state.seconds, state.best)

    def _identity(self, **arguments: Any) -> dict[str, Any]:
        """What decides the outcome of a training; how often it is saved does not."""
        outcome_free = ("save_every", "keep", "parallel")  # another plan may continue a training
        deciding = [item.name for item in fields(self) if item.name not in outcome_free]
        trainer = {name: describe(getattr(self, name)) for name in deciding}
        return {"trainer": trainer, **{name: describe(value) for name, value in arguments.items()}}


def _spread(plan: str | ParallelPlan, model: nn.Module) -> tuple[nn.Module, Processes]:
    from flambeau.training.parallel.apply import apply  # slow to import

    parallel = apply(ParallelPlan.from_string(plan) if isinstance(plan, str) else plan, copy.deepcopy(model))
    return parallel.module, parallel


def _saved(root: Path, history: History, identity: dict[str, Any]) -> dict[str, Any] | None:
    """The newest whole checkpoint under `root` that this training can continue, if there is one."""
    checkpoint.clean(root)
    for path, saved in checkpoint.newest(root):
        changed = differences(saved.get("identity"), identity)
        if changed:
            raise CheckpointError(
                f"{root.parent} holds another training: {'; '.join(changed[:5])}. Use another folder or remove this one"
            )
        try:
            history.resume(**saved["metrics"])
        except (OSError, ValueError) as error:
            warnings.warn(
                f"{path} is whole, its history is not: {error}; trying the checkpoint before it", stacklevel=3
            )
            continue
        return saved
    if checkpoint.exist(root):
        raise CheckpointError(
            f"no checkpoint in {root} can be continued; remove the folder to train from the beginning"
        )
    return None
