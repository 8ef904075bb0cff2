"""What can be wrong in a config, found before any model, data set or download."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from torch import nn

from flambeau.training import schedules
from flambeau.training.distillation import stage as forwards
from flambeau.training.distillation.criterion import bound_terms
from flambeau.training.distillation.names import (
    ADAPTATIONS,
    AUXILIARY,
    LOSSES,
    OPTIMIZERS,
    SCHEDULES,
    check_entry,
    find,
)
from flambeau.training.distillation.path_loss import Paths, parse_path
from flambeau.training.distillation.stages import check_side, is_whole, recorded_by, stage_sections
from flambeau.training.distillation.tags import ConfigError, Deferred

TOP = ("dependencies", "datasets", "models", "train", "test")
MODEL = ("key", "kwargs", "src_ckpt", "dst_ckpt", "repo_or_dir")
LOADER = (
    "dataset_id", "sampler", "kwargs", "collate_fn", "requires_supp", "cache_output", "augment_seed", "transform"
)  # fmt: skip
SIDE = (
    "forward_proc", "sequential", "adaptations", "frozen_modules", "forward_hook", "auxiliary", "replace", "wrapper",
    "requires_grad", "src_ckpt",
)  # fmt: skip
STEP = ("pre_epoch_process", "pre_forward_process", "post_forward_process", "post_epoch_process")
STAGE = (
    "num_epochs", "num_steps", "log_freq", "train_data_loader", "val_data_loader", "teacher", "student", "model",
    "optimizer", "scheduler", "criterion", *STEP,
)  # fmt: skip
OPTIMIZER = (
    "key", "kwargs", "module_wise_configs", "module_wise_kwargs", "filters_params", "max_grad_norm", "grad_accum_step"
)  # fmt: skip
TERM = ("criterion", "criterion_wrapper", "weight", "factor", "student", "teacher")


def check_config(config: Mapping[str, Any], allow: Sequence[str] = ("flambeau", "torch")) -> None:
    """Check a whole config: every key, every stage, and that each loss looks at something that is recorded.

    Keys that begin with an underscore are free, for anchors.

    Raises:
        ConfigError: the first thing that is wrong, with its place and the nearest names.
    """
    _keys(config, TOP, "the config")
    _mappings(config, ("datasets", "test"), "the config")
    models = config.get("models")
    if not isinstance(models, Mapping):
        raise ConfigError("models is missing: it holds student_model and teacher_model, or model")
    _keys(models, ("teacher_model", "student_model", "model"), "models")
    for name, section in models.items():
        if isinstance(section, Mapping) and not str(name).startswith("_"):
            _keys(section, MODEL, f"models.{name}")
            if "key" not in section:
                raise ConfigError(f"models.{name} has no key")
    if ("model" in models) == ("student_model" in models):
        raise ConfigError("models: expected student_model (with teacher_model), or model alone")
    datasets = config.get("datasets") or {}
    if "train" in config:
        check_train(config["train"], "teacher_model" in models, list(datasets), allow)
    test = config.get("test") or {}
    _keys(test, ("test_data_loader",), "test")
    if "test_data_loader" in test:
        _check_loader(test["test_data_loader"], list(datasets), "test.test_data_loader")


def check_train(train: Mapping[str, Any], has_teacher: bool, datasets: Sequence[str], allow: Sequence[str]) -> None:
    """Check a ``train`` section. datasets: the names that loaders may use."""
    _keys(train, train, "train")
    stages = [name for name in train if str(name).startswith("stage") and str(name)[5:].isdigit()]
    _keys(train, (*STAGE, *stages), "train")
    for name in stages:
        _keys(train[name], STAGE, f"train.{name}")
    for number, section in enumerate(stage_sections(train), start=1):
        where = f"train.stage{number}" if stages else "train"
        own = train[f"stage{number}"] if stages else train
        if "num_epochs" not in own:
            raise ConfigError(f"{where} has no num_epochs")
        for name in ("num_epochs", "num_steps"):
            value = section.get(name, 1)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigError(f"{where}.{name}: expected a whole number of at least 1, got {value!r}")
        for name in ("criterion", "train_data_loader"):
            if not section.get(name):
                raise ConfigError(f"{where} has no {name}")
        if number == 1 and not section.get("optimizer"):
            raise ConfigError(f"{where} has no optimizer, and there is no stage before to keep one of")
        _check_stage(section, where, has_teacher, datasets, allow)


def check_models(train: Mapping[str, Any], student: nn.Module, teacher: nn.Module | None) -> None:
    """Raise ConfigError for a module path of any stage that its model does not have."""
    for number, section in enumerate(stage_sections(train), start=1):
        for key, model in (("student", student), ("model", student), ("teacher", teacher)):
            if model is not None and section.get(key):
                check_side(section[key], model, f"stage {number}, {key}")
        for entry in (section.get("optimizer") or {}).get("module_wise_configs") or []:
            head = str(entry.get("module")).partition(".")[0]
            if head not in ("student", "teacher", "criterion", "auxiliary") and is_whole(section):
                check_side({"frozen_modules": [entry.get("module")]}, student, f"stage {number}, module_wise_configs")


def _check_stage(
    section: Mapping[str, Any], where: str, has_teacher: bool, datasets: Sequence[str], allow: Sequence[str]
) -> None:
    sides = {name: section.get(name) or {} for name in ("teacher", "student")}
    if section.get("model"):
        sides["student"] = section["model"]
    for name, side in sides.items():
        _keys(side, SIDE, f"{where}.{name}")
        _keys(side.get("forward_hook") or {}, ("input", "output"), f"{where}.{name}.forward_hook")
        _names(side.get("forward_hook") or {}, ("input", "output"), f"{where}.{name}.forward_hook")
        _names(side, ("sequential", "frozen_modules"), f"{where}.{name}")
        _mappings(side, ("adaptations",), f"{where}.{name}")
        if not isinstance(side.get("auxiliary"), nn.Module):
            _mappings(side, ("auxiliary",), f"{where}.{name}")
    for name in ("train_data_loader", "val_data_loader"):
        if section.get(name) is not None:
            _check_loader(section[name], datasets, f"{where}.{name}")
    cached = (section.get("train_data_loader") or {}).get("cache_output")
    if cached and (not has_teacher or sides["teacher"].get("requires_grad", False)):
        reason = "its requires_grad is True, so its outputs change" if has_teacher else "there is no teacher"
        raise ConfigError(f"{where}: cache_output stores what the teacher says, but {reason}")
    if section.get("optimizer"):
        _keys(section["optimizer"], OPTIMIZER, f"{where}.optimizer")
        check_entry(section["optimizer"], OPTIMIZERS, allow, f"{where}.optimizer", given=1)
        for entry in section["optimizer"].get("module_wise_configs") or []:
            _keys(entry, ("module", "kwargs"), f"{where}.optimizer.module_wise_configs")
            _mappings(entry, ("kwargs",), f"{where}.optimizer.module_wise_configs")
            if not isinstance(entry.get("module"), str):
                raise ConfigError(f"{where}.optimizer.module_wise_configs: an entry names no module: {entry!r}")
    if section.get("scheduler"):
        _keys(section["scheduler"], ("key", "kwargs", "scheduling_step"), f"{where}.scheduler")
        _mappings(section["scheduler"], ("kwargs",), f"{where}.scheduler")
        name = section["scheduler"].get("key")
        own = isinstance(name, str) and (hasattr(schedules, name) or "." in name)  # not given an optimiser
        if not own:
            check_entry(section["scheduler"], SCHEDULES, allow, f"{where}.scheduler", given=1)
    for name, side in sides.items():
        _check_parts(side, f"{where}.{name}", allow)
    _check_criterion(section["criterion"], sides, where, has_teacher, allow)


def _check_parts(side: Mapping[str, Any], where: str, allow: Sequence[str]) -> None:
    """The modules and functions that a side's section names."""
    for name, entry in (side.get("adaptations") or {}).items():
        check_entry(entry, ADAPTATIONS, allow, f"{where}.adaptations.{name}")
    if side.get("replace"):
        check_entry(side["replace"], AUXILIARY, allow, f"{where}.replace")
    auxiliary = side.get("auxiliary") or {}
    if isinstance(auxiliary, Mapping) and "key" in auxiliary:
        check_entry(auxiliary, AUXILIARY, allow, f"{where}.auxiliary")
    elif isinstance(auxiliary, Mapping):
        for name, entry in auxiliary.items():
            if not isinstance(entry, Mapping) or not isinstance(entry.get("input"), str):
                raise ConfigError(f"{where}.auxiliary.{name}: expected key, kwargs and input, got {entry!r}")
            check_entry(entry, ADAPTATIONS, allow, f"{where}.auxiliary.{name}")
    procedure = side.get("forward_proc")
    if procedure is not None and not isinstance(procedure, Deferred):
        find(procedure, (forwards.__name__,), allow, f"{where}.forward_proc")


def _check_criterion(
    criterion: Any, sides: Mapping[str, Any], where: str, has_teacher: bool, allow: Sequence[str]
) -> None:
    if isinstance(criterion, Mapping) and criterion.get("key") == "WeightedSumLoss":
        _keys(criterion, ("key", "kwargs", "func2extract_model_loss"), f"{where}.criterion")
        _keys(criterion.get("kwargs") or {}, ("sub_terms", "model_term"), f"{where}.criterion.kwargs")
        _mappings(criterion.get("kwargs") or {}, ("sub_terms", "model_term"), f"{where}.criterion.kwargs")
        for name, term in ((criterion.get("kwargs") or {}).get("sub_terms") or {}).items():
            if isinstance(term, Mapping):
                _keys(term, TERM, f"{where}.criterion.{name}")
    try:
        terms = bound_terms(criterion, allow)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    for name, loss, student, teacher, _ in terms:
        check_entry(loss, LOSSES, allow, f"{where}: criterion {name}")
        for side, paths in (("student", student), ("teacher", teacher)):
            if paths is not None:
                if side == "teacher" and not has_teacher:
                    raise ConfigError(f"{where}: criterion {name} looks at a teacher, and there is none")
                _check_recorded(paths, sides[side], f"{where}: criterion {name}", side)


def _check_recorded(paths: Paths, section: Mapping[str, Any], where: str, side: str) -> None:
    inputs, outputs, open_ended = recorded_by(section)
    if not isinstance(paths, (str, list, tuple)) or not paths:
        raise ConfigError(f"{where}: {side}: expected a path or a list of paths, got {paths!r}")
    for text in [paths] if isinstance(paths, str) else paths:
        try:
            path, kind = parse_path(text)
        except ValueError as error:
            raise ConfigError(f"{where}: {error}") from None
        known = inputs if kind == "input" else outputs
        if path not in known and not open_ended:
            raise ConfigError(
                f"{where} looks at the {kind} of the {side}'s {path!r}, which forward_hook does not record; "
                f"recorded {kind}s: {', '.join(sorted(known))}"
            )


def _check_loader(section: Any, datasets: Sequence[str], where: str) -> None:
    _keys(section, LOADER, where)
    _mappings(section, ("kwargs", "sampler"), where)
    name = section.get("dataset_id")
    if name not in datasets:
        nearest = ", ".join(get_close_matches(str(name), [str(item) for item in datasets], n=3, cutoff=0.3))
        raise ConfigError(f"{where}.dataset_id: there is no data set {name!r}, but {nearest or list(datasets)}")


def _mappings(section: Mapping[str, Any], names: Iterable[str], where: str) -> None:
    for name in names:
        value = section.get(name)
        if value and not isinstance(value, (Mapping, Deferred)):
            raise ConfigError(f"{where}.{name}: expected a mapping, got {value!r}")


def _names(section: Mapping[str, Any], names: Iterable[str], where: str) -> None:
    for name in names:
        value = section.get(name)
        listed = isinstance(value, list) and all(isinstance(item, str) and item for item in value)
        if value is not None and not listed:
            raise ConfigError(f"{where}.{name}: expected a list of module paths, got {value!r}")


def _keys(section: Any, known: Iterable[str], where: str) -> None:
    if not isinstance(section, Mapping):
        got = f"a tag {section.tag}" if isinstance(section, Deferred) else repr(section)
        raise ConfigError(f"{where}: expected a mapping, got {got}")
    known = list(known)
    for name in section:
        if str(name).startswith("_") or name in known or name == "kept":
            continue
        nearest = get_close_matches(str(name), known, n=3, cutoff=0.5)
        raise ConfigError(f"{where} has an unknown key {name!r}; the nearest are {', '.join(nearest or known)}")
