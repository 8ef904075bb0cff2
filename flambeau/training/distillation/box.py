"""A distillation from its config: stage after stage, by the Trainer or by a loop of one's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flambeau.data import Batches
from flambeau.data.seeding import derive_seed
from flambeau.training.distillation.cache import TeacherCache, cache_key, teacher_digest
from flambeau.training.distillation.loading import build_batches
from flambeau.training.distillation.models import build_models, pick_device
from flambeau.training.distillation.names import find
from flambeau.training.distillation.optimization import (
    keep_optimizer,
    optimizer_factory,
    plan_optimizer,
    plan_schedule,
)
from flambeau.training.distillation.schema import STEP, check_config, check_models, check_train
from flambeau.training.distillation.shares import average_gradients, own_rows, share_buffers
from flambeau.training.distillation.stage import Stage, split_batch, stage_loss
from flambeau.training.distillation.stages import build_stage, is_whole, stage_sections
from flambeau.training.distillation.tags import ConfigError, plain, resolve
from flambeau.training.loop import to_device
from flambeau.training.parallel.launch import announced_processes
from flambeau.training.progress import Progress
from flambeau.training.state import rng_state, seeded, set_rng_state
from flambeau.training.trainer import Fit, Trainer


class DistillBox:
    """A student that learns from a teacher as a config says (Matsubara 2021, arXiv 2011.12913).

    ``box.run()`` trains all stages with :class:`~flambeau.training.Trainer`, which saves, resumes and spreads them. A
    loop of one's own makes the same steps::

        while True:
            for epoch in range(box.num_epochs):
                for x, y, supp in box.batches(epoch):
                    box.post_forward_process(box.forward_process(x, y, supp))
            if not box.advance():
                break

    Args:
        teacher: any module, or None; without ``requires_grad: True`` it runs in evaluation mode without gradients.
        student: any module, trained in place.
        datasets: by name: ``ImageSet``, tuple of tensors, map-style data set, ``Batches``, or a tag that makes one.
        config: a whole config, or its ``train`` section; it is not changed.
        device: where everything is moved; None picks a GPU if there is one.
        accelerator: of Hugging Face's accelerate; for one's own loop.
        seed: of new modules, the order of the data, and what else is drawn.
        adjust_lr: multiply learning rates and batch sizes by the number of processes that ``torchrun`` started (linear
            scaling); without it they share the config's batch.
        allow: packages that names in the config may be imported from; see :func:`load_config`.

    Attributes:
        stage: the present :class:`Stage`. number: of the stage, from 1. stages: how many there are.
        train_data, val_data: the stage's batches. num_epochs: of the stage.

    Raises:
        ConfigError: the config is wrong, or does not fit the models; found before data is made or a step is taken.
    """

    def __init__(
        self,
        teacher: nn.Module | None,
        student: nn.Module,
        datasets: Mapping[str, Any],
        config: Mapping[str, Any],
        device: torch.device | str | None = "cpu",
        accelerator: Any = None,
        *,
        seed: int = 0,
        adjust_lr: bool = False,
        allow: Sequence[str] = ("flambeau", "torch"),
    ):
        train = config.get("train", config)
        check_train(train, teacher is not None, list(datasets), allow)
        check_models(train, student, teacher)
        self.device = pick_device() if device is None else torch.device(device)
        if accelerator is not None:
            self.device = accelerator.device
        self.student = student.to(self.device)
        self.teacher = None if teacher is None else teacher.to(self.device)
        self.datasets, self.accelerator, self.seed, self.allow = datasets, accelerator, seed, tuple(allow)
        self.factor = announced_processes() if adjust_lr else 1
        self.sections = stage_sections(train)
        self.stages = len(self.sections)
        self.number = 0
        self.built: dict[int, Any] = {}  # objects of tags, so that data sets are made once
        self._previous: Stage | None = None
        self._trained: list[nn.Parameter] = []
        self.stage: Stage
        self._set_up()

    # ---- stages

    def _set_up(self) -> None:
        """Build the next stage."""
        self.number += 1
        section = resolve({**self.sections[self.number - 1]}, self.built)
        self.section = section
        train_data = self._data(section["train_data_loader"], train=True)
        assert train_data is not None
        self.train_data = train_data
        self.val_data = self._data(section.get("val_data_loader"), train=False)
        with seeded(derive_seed(self.seed, "stage", self.number), self.device):
            self.stage = build_stage(
                section, self.student, self.teacher, self._previous, example=self._example(), allow=self.allow
            )
            self.stage.to(self.device).train()
        self._attach_cache()
        optimizer = section.get("optimizer")
        if optimizer:
            self.accumulate = _whole_number(optimizer.get("grad_accum_step") or 1, "grad_accum_step")
            self.clip = optimizer.get("max_grad_norm")
            self.plan = plan_optimizer(optimizer, self.stage, self.factor, self.allow)
        else:
            self.plan = keep_optimizer(self.plan, self.optimizer, self._trained, self.stage)
        self._trained = [parameter for parameter in self.stage.parameters() if parameter.requires_grad]
        self._factory, self._made = optimizer_factory(self.plan)
        self._prepared: nn.Module = self.stage
        self.num_epochs = section["num_epochs"]
        steps = max(1, self.num_epochs * len(self.train_data) // self.accumulate)
        self.num_steps = min(steps, section.get("num_steps", steps))
        self.schedule = None
        if section.get("scheduler"):
            self.schedule = plan_schedule(
                section["scheduler"], self.plan, batches=len(self.train_data), steps=self.num_steps,
                accumulate=self.accumulate, allow=self.allow,
            )  # fmt: skip
        self.batches_seen = 0
        for name in STEP:
            self.__dict__.pop(name, None)
            if section.get(name) is not None:
                setattr(self, name, partial(find(section[name], (), self.allow, name), self))

    def advance(self) -> bool:
        """End the present stage and set up the next; False if it was the last.

        The hooks are removed and every parameter is trainable again before the next stage freezes its own. A stage
        that names no optimiser goes on with this one, its present rates and its moments.
        """
        self.stage.close()
        share_buffers(self.stage)
        if self.number == self.stages:
            return False
        self._previous = self.stage
        self._set_up()
        return True

    def _data(self, section: Mapping[str, Any] | None, train: bool) -> Batches | None:
        if not section:
            return None
        dataset = resolve(self.datasets[section["dataset_id"]], self.built)
        return build_batches(section, dataset, train=train, factor=self.factor if train else 1, allow=self.allow)

    def _example(self) -> Any:
        """Two inputs, if the stage runs parts of a model and their order is to be tried."""
        sides = [self.section.get(name) or {} for name in ("teacher", "student", "model")]
        if not any(side.get("sequential") for side in sides):
            return None
        x, _, _ = split_batch(self.train_data.batch(0, torch.Generator().manual_seed(self.seed)))
        return x[:2].to(self.device) if isinstance(x, Tensor) else None

    def _attach_cache(self) -> None:
        folder = self.section["train_data_loader"].get("cache_output")
        if not folder:
            return
        teacher = self.stage.teacher
        if teacher is None or teacher.updatable:
            raise ConfigError("cache_output: a teacher with requires_grad: True changes, its outputs cannot be cached")
        what = f"{sorted(teacher.hooks.names())} {self.section['teacher'].get('forward_proc')}"
        self.stage.cache.value = TeacherCache(folder, cache_key(teacher.model, self.train_data, what))

    # ---- training by the Trainer

    def fit(
        self,
        *,
        folder: Path | str | None = None,
        progress: Progress | None = None,
        evaluate: Callable[[nn.Module], Mapping[str, float]] | None = None,
        **settings: Any,
    ) -> Fit:
        """Train the present stage. With `folder` it resumes exactly; one that had ended returns at once.

        Args:
            folder: of this stage.
            progress: as of ``Trainer.fit``.
            evaluate: ``evaluate(student)``, once an epoch, in stages whose student is the whole model.
            settings: further arguments of the ``Trainer``, such as ``precision``, ``parallel``, ``select`` or ``ema``.

        Raises:
            ConfigError: the stage names processes of its own for epochs or forwards, which are for one's own loop.
        """
        named = [name for name in STEP if self.section.get(name) is not None]
        if named:
            raise ConfigError(f"{', '.join(named)}: the Trainer has no such moments; use a loop of your own")
        if not is_whole(self.section):
            evaluate = None
        if evaluate is None:
            settings = {name: value for name, value in settings.items() if name not in ("select", "patience")}
        trainer = Trainer(
            steps=self.num_steps,
            optimizer=self._factory,
            schedule=self.schedule,
            accumulate=self.accumulate,
            clip=self.clip,
            **{"evaluate_every": max(1, len(self.train_data) // self.accumulate), **settings},
        )
        outcome = trainer.fit(
            self.stage,
            partial(stage_loss, identity=self._identity()),
            self.train_data,
            evaluate=None if evaluate is None else partial(_evaluate_student, evaluate),
            folder=folder,
            progress=progress,
            seed=derive_seed(self.seed, "fit", self.number),
        )
        if self.stage.cache.value is not None:
            self.stage.cache.value.flush()
        return outcome

    def run(self, *, folder: Path | str | None = None, **arguments: Any) -> list[Fit]:
        """Train all stages from the present one on, stage n in ``folder / "stage<n>"``; arguments as of :meth:`fit`.

        An interrupted run is continued by making the box again and calling this again with the same folder: the
        stages that had ended return at once with their weights.
        """
        fits = []
        while True:
            part = None if folder is None else Path(folder) / f"stage{self.number}"
            fits.append(self.fit(folder=part, **arguments))
            if not self.advance():
                return fits

    def _identity(self) -> dict[str, Any]:
        """What tells this stage's training from others, beside what the Trainer sees."""
        names = ("criterion", "teacher", "student", "model", "scheduler")
        raw = self.sections[self.number - 1]
        told = {name: sha256(repr(plain(raw[name])).encode()).hexdigest()[:16] for name in names if raw.get(name)}
        if self.stage.teacher is not None and not self.stage.teacher.updatable:
            told["teacher_weights"] = teacher_digest(self.stage.teacher.model)
        return told

    # ---- a loop of one's own

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The stage's optimiser; made when it is first asked for."""
        self._prepared_stage()
        return self._made.optimizer

    def _prepared_stage(self) -> nn.Module:
        """The stage, in what an accelerator puts around it; with it, its optimiser."""
        if not self._made.is_set:
            optimizer = self._factory(self._trained)
            if self.accelerator is not None:
                self._prepared, self._made.optimizer = self.accelerator.prepare(self.stage, optimizer)
        return self._prepared

    def batches(self, epoch: int) -> Iterator[tuple[Any, Any, Any]]:
        """The batches ``(x, y, supp)`` of an epoch of the stage, on the device; of each, this process's rows."""
        self.pre_epoch_process(epoch)
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "fit", self.number))
        for position in range(len(self.train_data)):
            batch = self.train_data.batch(epoch * len(self.train_data) + position, generator)
            yield split_batch(to_device(own_rows(batch), self.device))
        self.post_epoch_process(epoch)

    def forward_process(self, x: Any, y: Any = None, supp: Mapping[str, Any] | None = None) -> Tensor:
        """The loss of a batch; its terms are in ``box.values``."""
        self.pre_forward_process()
        self.values = self._prepared_stage()(x, y, supp)
        return self.values["loss"]

    def post_forward_process(self, loss: Tensor) -> None:
        """Backward and, after ``grad_accum_step`` batches, a step: averaged over processes, clipped, scheduled."""
        loss = loss / self.accumulate
        loss.backward() if self.accelerator is None else self.accelerator.backward(loss)
        self.batches_seen += 1
        if self.batches_seen % self.accumulate:
            return
        optimizer = self.optimizer
        if self.accelerator is None:
            average_gradients(self._trained)
        if self.schedule is not None:
            factor = self.schedule(self.batches_seen // self.accumulate - 1, self.num_steps)
            for group, rate in zip(optimizer.param_groups, self.plan.rates()):
                group["lr"] = rate * factor
        if self.clip is not None:
            clip = nn.utils.clip_grad_norm_ if self.accelerator is None else self.accelerator.clip_grad_norm_
            clip(self._trained, self.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def pre_epoch_process(self, epoch: int) -> None:
        """What begins an epoch: training mode. A config may name functions ``f(box, ...)`` in the place of the four."""
        self.stage.train()

    def pre_forward_process(self) -> None:
        """What comes before a forward pass: nothing."""

    def post_epoch_process(self, epoch: int) -> None:
        """What ends an epoch: what the cache holds is written."""
        if self.stage.cache.value is not None:
            self.stage.cache.value.flush()

    # ---- saving

    def state_dict(self) -> dict[str, Any]:
        """All that a loop of one's own has changed: stage, models, auxiliary and loss modules, optimiser, RNG."""
        state = {
            "number": self.number,
            "batches_seen": self.batches_seen,
            "student": self.student.state_dict(),
            "stage": self.stage.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "rates": self.plan.rates(),
            "rng": rng_state(self.device),
        }
        if self.teacher is not None:
            state["teacher"] = self.teacher.state_dict()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`, in a box that is at that stage or before it.

        Raises:
            ValueError: the box is past the stage, or has fewer.
        """
        if not self.number <= state["number"] <= self.stages:
            raise ValueError(f"the state is of stage {state['number']}, the box is at {self.number} of {self.stages}")
        while self.number < state["number"]:
            self.advance()
        self.student.load_state_dict(state["student"])
        if self.teacher is not None:
            self.teacher.load_state_dict(state["teacher"])
        self.stage.load_state_dict(state["stage"])
        for (_, kwargs), rate in zip(self.plan.groups, state["rates"], strict=True):
            kwargs["lr"] = rate
        self.optimizer.load_state_dict(state["optimizer"])
        self.batches_seen = state["batches_seen"]
        set_rng_state(self.device, None, state["rng"])


class TrainingBox(DistillBox):
    """A box without a teacher: ``TrainingBox(model, datasets, config, device)``; see :class:`DistillBox`."""

    def __init__(
        self, model: nn.Module, datasets: Mapping[str, Any], config: Mapping[str, Any], *rest: Any, **more: Any
    ):
        super().__init__(None, model, datasets, config, *rest, **more)


def get_box(
    config: Mapping[str, Any],
    device: torch.device | str | None = None,
    accelerator: Any = None,
    *,
    seed: int = 0,
    adjust_lr: bool = False,
    allow: Sequence[str] = ("flambeau", "torch"),
) -> DistillBox:
    """The box of a config: a :class:`TrainingBox` if its models have no teacher. The config is not changed.

    The whole config is checked first, then the models are built and every module path is looked up, then the data
    is made.

    Raises:
        ConfigError: anything that is wrong with the config.
    """
    check_config(config, allow)
    if "train" not in config:
        raise ConfigError("the config has no train section")
    teacher, student = build_models(config, seed=seed, allow=allow)
    arguments = (config.get("datasets") or {}, config, device, accelerator)
    keywords: dict[str, Any] = dict(seed=seed, adjust_lr=adjust_lr, allow=allow)
    if teacher is None:
        return TrainingBox(student, *arguments, **keywords)
    return DistillBox(teacher, student, *arguments, **keywords)


def _evaluate_student(evaluate: Callable[[nn.Module], Mapping[str, float]], stage: Stage) -> Mapping[str, float]:
    return evaluate(stage.student.model)


def _whole_number(value: Any, name: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"{name}: expected a whole number of at least 1, got {value!r}")
    return value
