"""The steps of one training: what happens in each, and what is recorded, evaluated and saved between them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from flambeau.data import Batches
from flambeau.training import checkpoint
from flambeau.training.interrupts import Interrupted, deferred_interrupts
from flambeau.training.metrics import History
from flambeau.training.precision import Precision
from flambeau.training.processes import Processes
from flambeau.training.progress import Progress
from flambeau.training.state import TrainingState, device_of, kept_rng, weights

if TYPE_CHECKING:
    from flambeau.training.trainer import Trainer

Data = Batches | Callable[[int, torch.Generator], Any]
Loss = Callable[[Any, Any], Tensor | Mapping[str, Any]]
SECONDS_BETWEEN_SAVES = 60.0
SECONDS_BETWEEN_WRITES = 2.0


@dataclass
class Loop:
    """One call of ``fit``: its parts, and the steps it takes."""

    trainer: Trainer
    state: TrainingState
    history: History
    loss: Loss
    data: Data
    evaluate: Callable[[Any], Mapping[str, float]] | None
    root: Path | None
    identity: dict[str, Any]
    total: int
    schedule: Callable[[int, int], float] | None
    base_rates: list[Any]
    precision: Precision
    processes: Processes
    saved_at: float = field(default_factory=time.perf_counter)
    last_finite: float | None = None

    def run(self, progress: Progress | None) -> None:
        """Train from the state's step to the end."""
        trainer, state, total = self.trainer, self.state, self.total
        description = "training" if self.root is None else self.root.name
        evaluate_every = trainer.evaluate_every or -(-total // 10)
        device = device_of(state.model)
        next_batch = self.data.batch if isinstance(self.data, Batches) else self.data
        # Reading a value from an accelerator waits for it, so values are read in blocks there.
        block = 1 if device.type == "cpu" else 32
        pending: list[tuple[int, float, dict[str, Any]]] = []
        spent, started = state.seconds, time.perf_counter()
        written_at = started
        with deferred_interrupts() as interrupts, _bar(progress, description, total) as bar:
            self.history.start()
            if state.step:
                bar.advance(state.step)
            while state.step < total and not state.finished:
                rate = self._set_rates()
                values = self._step(next_batch, device)
                state.step += 1
                pending.append((state.step, rate, values))
                evaluated = self.evaluate is not None and (state.step % evaluate_every == 0 or state.step == total)
                last = state.step == total
                now = time.perf_counter()
                stopped, due = self.processes.any(bool(interrupts.caught), self._save_due(now))
                if len(pending) >= block or evaluated or last or stopped:
                    self._record(pending, bar)
                if evaluated:
                    self._evaluate(device)
                state.finished = state.finished or last
                state.seconds = spent + now - started
                if due or state.finished or stopped:
                    self._record(pending, bar)
                    self._save()
                elif now - written_at > SECONDS_BETWEEN_WRITES:
                    self.history.write()
                    written_at = now
                if stopped:
                    where = "" if self.root is None else f"; saved in {self.root}: the same call continues it"
                    signal = interrupts.caught or "a signal to another process"
                    raise Interrupted(f"stopped by {signal} after step {state.step} of {total}{where}")

    def _set_rates(self) -> float:
        """Set the step's learning rates; returns that of the first group."""
        if self.schedule is not None:
            factor = self.schedule(self.state.step, self.total)
            for group, base in zip(self.state.optimizer.param_groups, self.base_rates):
                group["lr"] = base * factor
        return self.state.optimizer.param_groups[0]["lr"]

    def _step(self, next_batch: Callable[[int, torch.Generator], Any], device: torch.device) -> dict[str, Any]:
        """One optimiser step; returns the step's values, still as tensors."""
        state, accumulate = self.state, self.trainer.accumulate
        summed: dict[str, Any] = {}
        for position in range(accumulate):
            batch = self.processes.local(next_batch(state.step * accumulate + position, state.generator))
            with self.precision.autocast(device):
                values = self.processes.call(self.loss, state.model, to_device(batch, device))
                values = dict(values) if isinstance(values, Mapping) else {"loss": values}
                loss = self._checked(values)
            if accumulate > 1:
                loss = loss / accumulate
            (loss if state.scaler is None else state.scaler.scale(loss)).backward()
            for name, value in values.items():
                value = value.detach() if isinstance(value, Tensor) else value
                summed[name] = summed[name] + value if name in summed else value
        if accumulate > 1:
            summed = {name: value / accumulate for name, value in summed.items()}
        self.processes.reduce_gradients()
        if state.scaler is not None:
            state.scaler.unscale_(state.optimizer)
            self.processes.agree_on_overflow(state.scaler, state.optimizer)
        if self.trainer.clip is not None:
            summed["grad_norm"] = self.processes.clip_grad_norm(self.trainer.clip)
        if state.scaler is None:
            state.optimizer.step()
        else:
            state.scaler.step(state.optimizer)
            state.scaler.update()
        state.optimizer.zero_grad(set_to_none=True)
        if state.average is not None:
            state.average.update()
        return summed

    def _checked(self, values: dict[str, Any]) -> Tensor:
        loss = values.get("loss")
        if not isinstance(loss, Tensor):
            raise TypeError(f"loss must return a tensor, or a dict with a tensor 'loss'; got {type(loss).__name__}")
        if loss.numel() != 1:
            raise ValueError(f"loss must be a scalar, got shape {list(loss.shape)}")
        return loss

    def _record(self, pending: list[tuple[int, float, dict[str, Any]]], bar: Any) -> None:
        """Read the pending values, check the losses, and add them to the history."""
        for step, rate, values in pending:
            entry = self.processes.mean(values)
            if not math.isfinite(entry["loss"]):
                last = (
                    "there was none before"
                    if self.last_finite is None
                    else f"the last finite one was {self.last_finite:g}"
                )
                raise FloatingPointError(f"the loss is {entry['loss']} at step {step} of {self.total}; {last}")
            self.last_finite = entry["loss"]
            self.history.add(step, {**entry, "lr": float(rate)})
        if pending:
            bar.advance(len(pending), loss=self.last_finite)
        pending.clear()

    def _evaluate(self, device: torch.device) -> None:
        """Evaluate, and keep the weights if they are the best so far."""
        state, trainer = self.state, self.trainer
        assert self.evaluate is not None
        modes = [(module, module.training) for module in state.model.modules()]
        with kept_rng(device), torch.no_grad(), state.average.applied() if state.average else nullcontext():
            state.model.eval()
            evaluated = self.processes.call(self.evaluate, state.model)
            values = {name: float(value) for name, value in evaluated.items()}
            for module, mode in modes:
                module.training = mode
            self.history.add_evaluation(values)
            if trainer.select is None:
                return
            if not values:
                raise ValueError("evaluate returned no value to select by")
            first = next(iter(values))
            if _better(values[first], None if state.best is None else state.best[first], trainer.select):
                state.best = {"step": state.step, **values}
                state.best_weights = {
                    name: value.to("cpu", copy=True) if isinstance(value, Tensor) else value
                    for name, value in weights(state.model).items()
                }
                state.stale = 0
            else:
                state.stale += 1
                state.finished = trainer.patience is not None and state.stale >= trainer.patience

    def _save_due(self, now: float) -> bool:
        if self.root is None:
            return False
        if self.trainer.save_every is not None:
            return self.state.step % self.trainer.save_every == 0
        return now - self.saved_at >= SECONDS_BETWEEN_SAVES

    def _save(self) -> None:
        if self.root is None:
            return
        try:
            entries, size = self.history.write()
            metrics = {"entries": entries, "size": size}
            saved = {"identity": self.identity, "metrics": metrics, **self.processes.whole(self.state.state_dict())}
            self.processes.from_first(lambda: self._write(saved))
        except OSError as error:
            told = f"{error.strerror}: step {self.state.step} was not saved, earlier checkpoints are whole"
            raise OSError(error.errno, told, str(self.root)) from error
        self.saved_at = time.perf_counter()

    def _write(self, saved: dict[str, Any]) -> None:
        assert self.root is not None
        checkpoint.save(self.root / "checkpoints", self.state.step, saved, self.trainer.keep)


def to_device(batch: Any, device: torch.device) -> Any:
    """`batch` with every tensor of its tuples, lists and dicts on `device`; anything else as it is."""
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*[to_device(item, device) for item in batch])
    if isinstance(batch, (tuple, list)):
        return type(batch)([to_device(item, device) for item in batch])
    if isinstance(batch, dict):
        return {name: to_device(item, device) for name, item in batch.items()}
    return batch


def _better(value: float, best: float | None, select: str) -> bool:
    if math.isnan(value):
        return False
    if best is None:
        return True
    return value > best if select == "max" else value < best


class _NoBar:
    def advance(self, n: int = 1, **values: float) -> None:
        pass


def _bar(progress: Progress | None, description: str, total: int) -> Any:
    return nullcontext(_NoBar()) if progress is None else progress(description, total)
