"""Losses bound to module paths of a student and a teacher, and their weighted sum."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from flambeau.training.distillation.hooks import IO, SELF

Paths = str | Sequence[str]
LABELS = ("y", "target", "targets", "labels", "label")


class PathLoss(nn.Module):
    """A loss on tensors that are named by module path: ``PathLoss(FitNetLoss(), "layer2:output", "layer3:output")``.

    The loss is called with the student's value, then the teacher's. A parameter that is left over and is called y,
    target(s) or label(s) is given the labels; one that is called like an entry of `supp`, that entry.

    Args:
        loss: any module or function of tensors that returns a scalar.
        student: ``"path:output"`` or ``"path:input"``; "layer3" means its output, "." the model's own. Several paths
            are handed over as a tuple. None leaves it out.
        teacher: the same of the teacher.

    Calling it with the io dicts of student and teacher (see :class:`ForwardHookManager`), labels and `supp` gives the
    loss. Raises ValueError for a path that did not run in the forward pass, or labels that are needed and missing.
    """

    def __init__(self, loss: Any, student: Paths | None = None, teacher: Paths | None = None):
        super().__init__()
        if student is None and teacher is None:
            raise ValueError("student and teacher are both None: a loss needs at least one path")
        self.loss = loss
        self.student = None if student is None else _parsed(student)
        self.teacher = None if teacher is None else _parsed(teacher)
        function = loss.forward if isinstance(loss, nn.Module) else loss
        given = (self.student is not None) + (self.teacher is not None)
        parameters = inspect.signature(function).parameters.values()
        named = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        self.others = [(p.name, p.default is not p.empty) for p in named[given:]]

    def references(self) -> list[tuple[str, str, str]]:
        """The values that it needs, as ("student" or "teacher", path, "input" or "output")."""
        sides = (("student", self.student), ("teacher", self.teacher))
        return [(side, *reference) for side, paths in sides if paths is not None for reference in paths[1]]

    def forward(self, student: IO, teacher: IO, y: Any = None, supp: Mapping[str, Any] | None = None) -> Tensor:
        values = []
        for side, io, paths in (("student", student, self.student), ("teacher", teacher, self.teacher)):
            if paths is not None:
                found = [_value(io, side, path, kind) for path, kind in paths[1]]
                values.append(tuple(found) if paths[0] else found[0])
        others = {}
        for name, optional in self.others:
            if name in LABELS and y is not None:
                others[name] = y
            elif supp is not None and name in supp:
                others[name] = supp[name]
            elif not optional:
                given = "no labels" if name in LABELS else f"nothing called {name}"
                raise ValueError(f"{type(self.loss).__name__} needs {name}; the batch has {given}")
        return self.loss(*values, **others)


class WeightedSumLoss(nn.Module):
    """A weighted sum of losses, all of which are submodules: their parameters and banks are saved, moved and trained.

    Args:
        terms: name -> ``(PathLoss, weight)``; any module with the same call will do.
        model_weight: weight of the losses that the student itself returns (a detection model in training), one number
            or one for each of its names; None leaves them out.

    Calling it with ``(student io, teacher io, model losses, y, supp)`` gives the terms, weighted, and their sum
    under "loss".
    """

    def __init__(
        self, terms: Mapping[str, tuple[nn.Module, float]], model_weight: float | Mapping[str, float] | None = None
    ):
        super().__init__()
        if not terms and model_weight is None:
            raise ValueError("terms: got none, and model_weight is None: there is nothing to minimise")
        for name, (_, weight) in terms.items():
            if not isinstance(weight, (int, float)) or isinstance(weight, bool):
                raise TypeError(f"weight of {name}: expected a number, got {weight!r}")
        self.terms = nn.ModuleDict({name: term for name, (term, _) in terms.items()})
        self.weights = {name: float(weight) for name, (_, weight) in terms.items()}
        self.model_weight = dict(model_weight) if isinstance(model_weight, Mapping) else model_weight

    def references(self) -> list[tuple[str, str, str, str]]:
        """``(term, side, path, "input" or "output")`` of all terms that are bound to paths."""
        bound = [(name, term) for name, term in self.terms.items() if isinstance(term, PathLoss)]
        return [(name, *reference) for name, term in bound for reference in term.references()]

    def forward(
        self,
        student: IO,
        teacher: IO,
        model_losses: Mapping[str, Tensor] | None = None,
        y: Any = None,
        supp: Mapping[str, Any] | None = None,
    ) -> dict[str, Tensor]:
        values = {name: self.weights[name] * term(student, teacher, y, supp) for name, term in self.terms.items()}
        if self.model_weight is not None:
            if not model_losses:
                raise ValueError("model_term: the student returned no losses; name them with func2extract_model_loss")
            for name, value in model_losses.items():
                factor = self.model_weight[name] if isinstance(self.model_weight, dict) else self.model_weight
                values[f"model_{name}"] = factor * value
        return {"loss": sum(values.values()), **values}  # type: ignore[dict-item]


def parse_path(text: Any) -> tuple[str, str]:
    """``"layer3:input"`` as ("layer3", "input"); without a colon, the output."""
    if not isinstance(text, str) or not text:
        raise ValueError(f'expected "path:input" or "path:output", got {text!r}')
    path, colon, kind = text.rpartition(":")
    if not colon:
        return text, "output"
    if kind not in ("input", "output") or not path:
        raise ValueError(f'expected "path:input" or "path:output", got {text!r}')
    return path, kind


def _parsed(paths: Paths) -> tuple[bool, list[tuple[str, str]]]:
    several = not isinstance(paths, str)
    parsed = [parse_path(path) for path in paths] if several else [parse_path(paths)]
    if not parsed:
        raise ValueError("expected at least one path, got none")
    return several, parsed


def _value(io: IO, side: str, path: str, kind: str) -> Any:
    if kind not in io.get(path, {}):
        model = "itself" if path == SELF else f"module {path!r}"
        ran = ", ".join(name for name, entry in io.items() if kind in entry) or "none"
        raise ValueError(f"the {kind} of the {side}'s {model} was not recorded in this forward pass; recorded: {ran}")
    return io[path][kind]
