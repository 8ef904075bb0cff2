"""The ``criterion`` section of a config: terms, their weights, and the module paths that they look at."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from flambeau.training.distillation.hooks import SELF
from flambeau.training.distillation.names import LOSSES, find, make
from flambeau.training.distillation.path_loss import PathLoss, Paths, WeightedSumLoss
from flambeau.training.distillation.tags import ConfigError

Bound = tuple[str, Any, Paths | None, Paths | None, float]  # name, {key, kwargs}, student, teacher, weight


def bound_terms(section: Mapping[str, Any], allow: Sequence[str]) -> list[Bound]:
    """The terms of a ``criterion`` section, each with its loss (not built), its paths and its weight.

    A term names its paths with ``student`` and ``teacher`` ("layer3:output", or a list of such), or as torchdistill's
    configs do: a ``criterion_wrapper`` with ``input`` and ``target``, ``student_module_path`` and its like among the
    loss's kwargs, or kwargs that end in ``_pairs``, which give one term a pair. Without any, it looks at the student's
    output, and at the teacher's if the loss has a parameter for it.

    Raises:
        ConfigError: a term without a criterion, or a weight that is no number.
    """
    if not isinstance(section, Mapping) or "key" not in section:
        raise ConfigError(f"criterion: expected key and kwargs, got {section!r}")
    if section["key"] != "WeightedSumLoss":
        terms = {"loss": {"criterion": section, **section, "weight": section.get("weight", 1.0)}}
    else:
        terms = (section.get("kwargs") or {}).get("sub_terms") or {}
    bound: list[Bound] = []
    for name, term in terms.items():
        try:
            bound += _bind(str(name), term, allow)
        except ConfigError:
            raise
        except (KeyError, AttributeError, TypeError, ValueError) as error:
            raise ConfigError(f"criterion {name}: malformed, {error!r} in {term!r}") from None
    return bound


def build_criterion(section: Mapping[str, Any], allow: Sequence[str]) -> WeightedSumLoss:
    """The loss of a ``criterion`` section.

    Raises:
        ConfigError: as of :func:`bound_terms`, or a loss that refuses its arguments.
    """
    terms = {}
    for name, loss, student, teacher, weight in bound_terms(section, allow):
        try:
            terms[name] = (PathLoss(make(loss, LOSSES, allow, f"criterion {name}"), student, teacher), weight)
        except ConfigError:
            raise
        except ValueError as error:
            raise ConfigError(f"criterion {name}: {error}") from error
    model_weight = ((section.get("kwargs") or {}).get("model_term") or {}).get("weight")
    try:
        return WeightedSumLoss(terms, model_weight)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"criterion: {error}") from None


def model_losses(section: Mapping[str, Any], allow: Sequence[str]) -> Callable[..., Mapping[str, Any]] | None:
    """What ``func2extract_model_loss`` names: a function ``(student output, y, supp) -> dict`` of losses."""
    named = section.get("func2extract_model_loss")
    if named is None:
        weight = ((section.get("kwargs") or {}).get("model_term") or {}).get("weight")
        return None if weight is None else extract_model_loss_dict
    return find(named, ("flambeau.training.distillation.criterion",), allow, "func2extract_model_loss")


def extract_model_loss_dict(output: Any, y: Any = None, supp: Any = None) -> dict[str, Any]:
    """The losses that a model returns in training mode as a dict; none if it returns anything else."""
    return dict(output) if isinstance(output, Mapping) else {}


def _bind(name: str, term: Any, allow: Sequence[str]) -> list[Bound]:
    if not isinstance(term, Mapping) or "criterion" not in term:
        raise ConfigError(f"criterion {name}: expected criterion and weight, got {term!r}")
    weight = term.get("weight", term.get("factor", 1.0))
    if not isinstance(weight, (int, float)) or isinstance(weight, bool):
        raise ConfigError(f"criterion {name}: weight: expected a number, got {weight!r}")
    loss = term["criterion"]
    if isinstance(loss, nn.Module):
        return [(name, loss, *_given_paths(term, loss.forward, name), weight)]
    if not isinstance(loss, Mapping) or "key" not in loss:
        raise ConfigError(f"criterion {name}: expected key and kwargs, got {loss!r}")
    kwargs = dict(loss.get("kwargs") or {})
    if kwargs.get("reduction") == "batchmean" and not hasattr(nn, str(loss["key"])):
        del kwargs["reduction"]  # the only one that distillation losses of logits have
    pairs = [key for key in kwargs if key.endswith("_pairs") or key == "pairs"]
    if pairs:
        entries = kwargs.pop(pairs[0])
        bound: list[Bound] = []
        for pair, entry in entries.items():
            ours, theirs = _path_of(entry["student"]), _path_of(entry["teacher"])
            single = {"key": loss["key"], "kwargs": kwargs}
            bound.append((f"{name}_{pair}", single, ours, theirs, weight * entry.get("weight", 1)))
        return bound
    paths: dict[str, Paths | None] = {}
    for side in ("student", "teacher"):
        if f"{side}_module_path" in kwargs:
            paths[side] = f"{kwargs.pop(f'{side}_module_path')}:{kwargs.pop(f'{side}_module_io', 'output')}"
    wrapper = (term.get("criterion_wrapper") or {}).get("kwargs") or {}
    for role in ("input", "target"):
        taken = wrapper.get(role) or {}
        if taken and not taken.get("uses_label"):
            side = "teacher" if taken.get("is_from_teacher") else "student"
            if side in paths:
                raise ConfigError(f"criterion {name}: input and target are both of the {side}; give a list of paths")
            paths[side] = f"{taken['module_path']}:{taken.get('io', 'output')}"
    bare = {"key": loss["key"], "kwargs": kwargs}
    if paths:
        return [(name, bare, paths.get("student"), paths.get("teacher"), weight)]
    function = find(loss["key"], LOSSES, allow, f"criterion {name}")
    return [(name, bare, *_given_paths(term, getattr(function, "forward", function), name), weight)]


def _given_paths(term: Mapping[str, Any], forward: Callable[..., Any], name: str) -> tuple[Paths | None, Paths | None]:
    if "student" in term or "teacher" in term:
        return term.get("student"), term.get("teacher")
    wants_teacher = any("teacher" in parameter for parameter in inspect.signature(forward).parameters)
    return SELF, SELF if wants_teacher else None


def _path_of(entry: Mapping[str, Any]) -> str:
    return f"{entry['path']}:{entry.get('io', 'output')}"
