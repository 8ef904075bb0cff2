"""From the sections of a config to the stages of a training."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from flambeau.training.distillation import stage as forwards
from flambeau.training.distillation.cache import TeacherCache
from flambeau.training.distillation.criterion import build_criterion, model_losses
from flambeau.training.distillation.hooks import find_module, unwrap
from flambeau.training.distillation.names import ADAPTATIONS, AUXILIARY, find, make
from flambeau.training.distillation.sequential import build_sequential, freeze
from flambeau.training.distillation.stage import Side, Stage, forward_batch_only
from flambeau.training.distillation.tags import ConfigError
from flambeau.training.distillation.weights import load_weights

INHERITED = ("train_data_loader", "val_data_loader", "teacher", "student", "model")


def stage_sections(train: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The stages of a ``train`` section, in order; what a stage leaves out of data and models is the one before's.

    A section without stage1 is a single stage. "kept" names what a stage took over.

    Raises:
        ConfigError: stages that are not numbered 1, 2, ...
    """
    names = [name for name in train if re.fullmatch(r"stage\d+", str(name))]
    if not names:
        return [{**train, "kept": []}]
    if names != [f"stage{number}" for number in range(1, len(names) + 1)]:
        raise ConfigError(f"train: stages must be stage1, stage2, ... in order, got {names}")
    common = {name: value for name, value in train.items() if name not in names}
    sections: list[dict[str, Any]] = []
    for name in names:
        before = sections[-1] if sections else common
        kept = [key for key in INHERITED if key not in train[name] and key in before]
        taken = {key: before[key] for key in kept}
        sections.append({**common, **taken, **train[name], "kept": kept if sections else []})
    return sections


def build_stage(
    section: Mapping[str, Any],
    student: nn.Module,
    teacher: nn.Module | None,
    previous: Stage | None,
    *,
    cache: TeacherCache | None = None,
    example: Any = None,
    allow: Sequence[str],
) -> Stage:
    """The stage of a section of :func:`stage_sections`.

    Auxiliary modules that have a namesake of the same shape on the same side in the previous stage take its weights.

    Args:
        student, teacher: the whole models, trainable throughout.
        previous: the stage before, closed.
        cache: for the teacher's outputs.
        example: an input batch that ``sequential`` is tried on.

    Raises:
        ConfigError: a section that does not fit its model.
    """
    kept = section.get("kept", ())
    sides: dict[str, Side | None] = {"teacher": None}
    for name, model in (("student", student), ("teacher", teacher)):
        if model is None:
            continue
        key = "model" if name == "student" and "model" in section else name
        before = None if previous is None else getattr(previous, name)
        taken = before if key in kept else None
        try:
            sides[name] = _build_side(section.get(key) or {}, model, taken, before, name, example, allow)
        except ConfigError:
            raise
        except ValueError as error:
            raise ConfigError(f"{key}: {error}") from error
    assert sides["student"] is not None
    criterion = build_criterion(section["criterion"], allow)
    return Stage(sides["student"], sides["teacher"], criterion, model_losses(section["criterion"], allow), cache)


def is_whole(section: Mapping[str, Any]) -> bool:
    """Whether the student of a stage is the model itself, not a part of it or something in its place."""
    side = section.get("model") or section.get("student") or {}
    return not side.get("sequential") and not side.get("replace")


def _build_side(
    section: Mapping[str, Any],
    model: nn.Module,
    taken: Side | None,
    before: Side | None,
    name: str,
    example: Any,
    allow: Sequence[str],
) -> Side:
    if taken is not None:
        network, auxiliary = taken.model, taken.auxiliary
    else:
        network = model
        if section.get("replace"):
            network = make(section["replace"], AUXILIARY, allow, "replace")
        elif section.get("sequential"):
            adaptations = {
                key: make(entry, ADAPTATIONS, allow, f"adaptations {key}")
                for key, entry in (section.get("adaptations") or {}).items()
            }
            network = build_sequential(model, section["sequential"], adaptations, example)
        auxiliary = build_auxiliary(section.get("auxiliary"), allow)
        if auxiliary is not None and before is not None and before.auxiliary is not None:
            _take_over(auxiliary, before.auxiliary)
        if section.get("src_ckpt"):
            load_weights(network, section["src_ckpt"], f"{name}: src_ckpt")
    if not section.get("requires_grad", name == "student"):
        network.requires_grad_(False)
    for entry in section.get("frozen_modules") or []:
        parts = getattr(auxiliary, "parts", {})
        if entry in parts and (entry == "." or entry not in dict(unwrap(network).named_modules())):
            parts[entry].requires_grad_(False)
        else:
            freeze(network, [entry])
    procedure = section.get("forward_proc")
    forward = forward_batch_only if procedure is None else find(procedure, (forwards.__name__,), allow, "forward_proc")
    return Side(network, section.get("forward_hook"), auxiliary, forward)


def build_auxiliary(section: Any, allow: Sequence[str]) -> nn.Module | None:
    """The auxiliary module of an ``auxiliary`` section.

    Either ``{name: {key, kwargs, input: "path:output"}, ...}``, modules that run one after another on what was
    recorded, or ``{key, kwargs}`` of one class with ``secondary_forward``.

    Raises:
        ConfigError: an entry without an input, or a class without ``secondary_forward``.
    """
    from flambeau.training.distillation.auxiliary import Auxiliary

    if not section:
        return None
    if isinstance(section, nn.Module) or "key" in section:
        auxiliary = make(_built_arguments(section, allow), AUXILIARY, allow, "auxiliary")
        if not hasattr(auxiliary, "secondary_forward"):
            raise ConfigError(f"auxiliary: {type(auxiliary).__name__} has no secondary_forward; name an input for it")
        return auxiliary
    modules, inputs = {}, {}
    for name, entry in section.items():
        if not isinstance(entry, Mapping) or "input" not in entry:
            raise ConfigError(f"auxiliary {name}: expected key, kwargs and input, got {entry!r}")
        modules[name] = make(entry, ADAPTATIONS, allow, f"auxiliary {name}")
        source = entry["input"]
        inputs[name] = source if source.endswith((":input", ":output")) else f"{source}:output"
    return Auxiliary(modules, inputs)


def _built_arguments(section: Any, allow: Sequence[str]) -> Any:
    """`section` with ``{key, kwargs}`` among its arguments, also in lists, built."""
    if isinstance(section, nn.Module):
        return section

    def built(value: Any) -> Any:
        if isinstance(value, Mapping) and "key" in value:
            return make(_built_arguments(value, allow), ADAPTATIONS, allow, "auxiliary")
        return [built(item) for item in value] if isinstance(value, list) else value

    return {**section, "kwargs": {name: built(value) for name, value in (section.get("kwargs") or {}).items()}}


def _take_over(auxiliary: nn.Module, before: nn.Module) -> None:
    """Copy what both have by name and shape."""
    old, new = before.state_dict(), auxiliary.state_dict()
    auxiliary.load_state_dict(
        {name: old[name] if name in old and old[name].shape == value.shape else value for name, value in new.items()}
    )


def recorded_by(side: Mapping[str, Any]) -> tuple[set[str], set[str], bool]:
    """What a side's section records: inputs, outputs, and whether an auxiliary class may add names of its own."""
    hook = side.get("forward_hook") or {}
    inputs, outputs = ({".", *(hook.get(kind) or ())} for kind in ("input", "output"))
    auxiliary = side.get("auxiliary") or {}
    if isinstance(auxiliary, nn.Module) or "key" in auxiliary:
        return inputs, outputs, True
    return inputs | set(auxiliary), outputs | set(auxiliary), False


def check_side(section: Mapping[str, Any], model: nn.Module, what: str) -> None:
    """Raise ConfigError if a path of a side's section is none of the model's, or not among those that run."""
    sequential = section.get("sequential") or []
    adaptations = section.get("adaptations") or {}
    replaced = bool(section.get("replace"))
    hook = section.get("forward_hook") or {}
    try:
        for path in [*sequential, *(hook.get("input") or []), *(hook.get("output") or [])]:
            if path.startswith("+"):
                if path[1:] not in adaptations:
                    raise ConfigError(f"{path} is not among the adaptations ({', '.join(adaptations) or 'none'})")
            elif not replaced:
                find_module(model, path)
            if sequential and path != "." and not any(path == run or path.startswith(f"{run}.") for run in sequential):
                raise ConfigError(f"{path} does not run: sequential is {list(sequential)}")
        names = section.get("auxiliary") or {}
        parameters = dict(unwrap(model).named_parameters())
        for path in section.get("frozen_modules") or []:
            known = path in parameters or path.startswith("instance(") or (isinstance(names, Mapping) and path in names)
            if not known and path not in adaptations and not replaced:
                find_module(model, path)
    except ValueError as error:
        raise ConfigError(f"{what}: {error}") from None
