"""A whole run from a config: train all stages, test, and leave in the folder what is needed to do it again."""

from __future__ import annotations

import logging
import os
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from pprint import pformat
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from flambeau.data import Batches
from flambeau.files import write_bytes, write_json
from flambeau.training.distillation.box import DistillBox, get_box
from flambeau.training.distillation.config import load_config
from flambeau.training.distillation.loading import build_batches
from flambeau.training.distillation.models import build_models, pick_device
from flambeau.training.distillation.schema import check_config
from flambeau.training.distillation.stage import split_batch
from flambeau.training.distillation.tags import ConfigError, resolve
from flambeau.training.distillation.weights import load_weights, write_weights
from flambeau.training.loop import to_device
from flambeau.training.parallel.launch import announced_processes, join_group
from flambeau.training.progress import Progress

Evaluate = Callable[[nn.Module, Iterable[Any]], Mapping[str, float]]
ALLOW = ("flambeau", "torch")


def distill(
    config: str | Path | Mapping[str, Any],
    *,
    folder: str | Path | None = None,
    progress: Progress | None = None,
    device: torch.device | str | None = None,
    seed: int = 0,
    evaluate: Evaluate | None = None,
    adjust_lr: bool = False,
    allow: Sequence[str] = ALLOW,
    **settings: Any,
) -> dict[str, Any]:
    """Train and test as a config says; the student's weights go to its ``dst_ckpt`` too, if it names one.

    Under ``torchrun`` the processes share each batch, by the student's ``wrapper`` of the first stage: replicas for
    DistributedDataParallel or none, shards for FullyShardedDataParallel (see ``Trainer(parallel=...)``). The same
    call with the same folder continues an interrupted run, in whatever stage it was.

    Args:
        config: a file, or what :func:`load_config` returned.
        folder: holds ``config.yaml`` (a copy; ``config.txt`` of an object), ``environment.json``, ``log.txt``,
            ``results.json``, ``student.safetensors``, and a folder a stage with checkpoints and ``metrics.jsonl``.
        progress: as of ``Trainer.fit``.
        device: None picks a GPU if there is one.
        evaluate: ``evaluate(model, batches) -> {name: value}`` on the validation and test data; None measures top-1
            and top-5 accuracy, where labels are class numbers.
        adjust_lr, allow: see :class:`DistillBox`.
        settings: further arguments of the ``Trainer``, such as ``precision``, ``select`` or ``parallel``.

    Returns:
        ``{"student": weights' owner, "fits": one Fit a stage, "test": {"student": {...}, "teacher": {...}}}``.

    Raises:
        ConfigError: the config is wrong.
    """
    loaded, text = _loaded(config, allow)
    box = get_box(loaded, device, seed=seed, adjust_lr=adjust_lr, allow=allow)
    if announced_processes() > 1:
        join_group("nccl" if box.device.type == "cuda" else "gloo")
        settings.setdefault("parallel", _plan(box, announced_processes()))
    root = None if folder is None else Path(folder)
    first = not dist.is_initialized() or dist.get_rank() == 0
    log = _log(root if first else None)
    try:
        if root is not None and first:
            root.mkdir(parents=True, exist_ok=True)
            write_bytes(root / ("config.txt" if isinstance(config, Mapping) else "config.yaml"), text.encode())
            write_json(root / "environment.json", environment(box.device, seed))
        measure = evaluate or accuracy
        fits = []
        while True:
            number, batches = box.number, box.val_data
            log.info("stage %d of %d: %d steps on %s", number, box.stages, box.num_steps, box.device)
            fits.append(
                box.fit(
                    folder=None if root is None else root / f"stage{number}",
                    progress=progress,
                    evaluate=None if batches is None else _Validation(measure, batches, box.device),
                    **settings,
                )
            )
            log.info("stage %d: %d steps in %.1f s, %s", number, fits[-1].steps, fits[-1].seconds, fits[-1].history[-1])
            if not box.advance():
                break
        tested = evaluate_models(loaded, box=box, evaluate=evaluate, allow=allow) if loaded.get("test") else {}
        for name, values in tested.items():
            log.info("test, %s: %s", name, values)
        if first:
            destination = resolve(_student_section(loaded)).get("dst_ckpt")
            if destination:
                write_weights(box.student, destination)
            if root is not None:
                write_weights(box.student, root / "student.safetensors")
                write_json(root / "results.json", {"test": tested, "seconds": sum(fit.seconds for fit in fits)})
    finally:
        for handler in list(log.handlers):
            log.removeHandler(handler)
            handler.close()
    return {"student": box.student, "fits": fits, "test": tested}


def evaluate_models(
    config: str | Path | Mapping[str, Any],
    *,
    box: DistillBox | None = None,
    student_only: bool = False,
    device: torch.device | str | None = None,
    evaluate: Evaluate | None = None,
    weights: str | Path | None = None,
    allow: Sequence[str] = ALLOW,
) -> dict[str, dict[str, float]]:
    """Measure student and teacher on the config's test data, without training.

    Args:
        config: as of :func:`distill`; only ``models``, ``datasets`` and ``test`` are looked at.
        box: takes the models from a box in place of building them.
        student_only: leave out the teacher.
        weights: a file of the student's weights; None takes its ``dst_ckpt`` if that file exists, or ``src_ckpt``.
        evaluate: as of :func:`distill`.

    Raises:
        ConfigError: no ``test_data_loader``, or another fault of the config.
    """
    loaded, _ = _loaded(config, allow)
    check_config({name: value for name, value in loaded.items() if name != "train"}, allow)
    section = (loaded.get("test") or {}).get("test_data_loader")
    if not section:
        raise ConfigError("the config has no test.test_data_loader")
    if box is None:
        where = pick_device() if device is None else torch.device(device)
        teacher, student = build_models(loaded, allow=allow)
        file = weights or resolve(_student_section(loaded)).get("dst_ckpt")
        if weights is not None or (file and Path(file).expanduser().exists()):
            load_weights(student, file, "weights")
        models = {"student": student, "teacher": teacher}
        built: dict[int, Any] = {}
        dataset = resolve(loaded["datasets"][section["dataset_id"]], built)
    else:
        where, models, built = box.device, {"student": box.student, "teacher": box.teacher}, box.built
        dataset = resolve(box.datasets[section["dataset_id"]], built)
    data = build_batches(resolve(section, built), dataset, train=False, allow=allow)
    tested = {}
    for name, model in models.items():
        if model is not None and not (student_only and name == "teacher"):
            modes = [(module, module.training) for module in model.modules()]
            with torch.no_grad():
                tested[name] = dict(_Validation(evaluate or accuracy, data, where)(model.to(where).eval()))
            for module, mode in modes:
                module.training = mode
    return tested


def accuracy(model: nn.Module, batches: Iterable[Any]) -> dict[str, float]:
    """Share of correct top-1 and top-5 predictions, per cent.

    The output of the model, or its ``logits``, is [B, C, ...]. Labels are int64 [B, ...]; negative ones are not
    counted. Top-5 needs more than five classes.

    Raises:
        ValueError: an output or labels of other shapes; give an `evaluate` of your own for such a model.
    """
    right = right5 = count = 0
    classes = 0
    for batch in batches:
        x, y, _ = split_batch(batch)
        output = model(**x) if isinstance(x, Mapping) else model(x)
        logits = getattr(output, "logits", output)
        fits = isinstance(logits, Tensor) and isinstance(y, Tensor) and not y.is_floating_point()
        if not fits or logits.shape[:1] + logits.shape[2:] != y.shape:
            got = [list(value.shape) if isinstance(value, Tensor) else type(value).__name__ for value in (logits, y)]
            raise ValueError(f"accuracy: expected logits [B, C, ...] and labels [B, ...], got {got}; give evaluate")
        classes, known = logits.shape[1], y >= 0
        top = logits.topk(min(5, classes), 1).indices
        hits = (top == y.unsqueeze(1)) & known.unsqueeze(1)
        right, right5, count = right + int(hits[:, 0].sum()), right5 + int(hits.any(1).sum()), count + int(known.sum())
    share = {"accuracy": 100 * right / max(count, 1)}
    return share | {"top5": 100 * right5 / max(count, 1)} if classes > 5 else share


def environment(device: torch.device, seed: int) -> dict[str, Any]:
    """What a run was done with, as plain data."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "machine": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "threads": torch.get_num_threads(),
        "processes": announced_processes(),
        "seed": seed,
    }


class _Validation:
    """``evaluate(model, batches)`` on held-out batches, as a function of the model."""

    def __init__(self, measure: Evaluate, batches: Batches, device: torch.device):
        self.measure, self.batches, self.device = measure, batches, device

    def __call__(self, model: nn.Module) -> Mapping[str, float]:
        return self.measure(model, (to_device(batch, self.device) for batch in self.batches.all()))


def _loaded(config: str | Path | Mapping[str, Any], allow: Sequence[str]) -> tuple[Mapping[str, Any], str]:
    """The config, and its text for the run's folder."""
    if isinstance(config, Mapping):
        return config, pformat(dict(config), sort_dicts=False) + "\n"
    return load_config(config, allow), Path(config).read_text(encoding="utf-8")


def _student_section(config: Mapping[str, Any]) -> Mapping[str, Any]:
    models = config["models"]
    return models.get("student_model") or models["model"]


def _plan(box: DistillBox, processes: int) -> str:
    """How the processes share a stage, by the config's own word for it."""
    section = box.section.get("student") or box.section.get("model") or {}
    wrapper = section.get("wrapper")
    name = wrapper.get("key") if isinstance(wrapper, Mapping) else wrapper
    return f"fsdp{processes}" if str(name).startswith("FullyShardedDataParallel") else f"dp{processes}"


def _log(root: Path | None) -> logging.Logger:
    """A logger of this run: to ``log.txt`` in its folder, and to whatever listens to flambeau's."""
    log = logging.getLogger(f"flambeau.distillation.{os.getpid()}.{root}")
    log.setLevel(logging.INFO)
    if root is not None:
        root.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(root / "log.txt")
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        log.addHandler(handler)
    return log
