"""What the short names of a config mean: attributes of the packages where parts of that kind live."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from torch import nn

from flambeau.training.distillation.tags import ConfigError, Deferred, import_name

MODELS = ("flambeau.models.vision", "flambeau.models.language", "flambeau.models", "torchvision.models")
LOSSES = ("flambeau.objectives.distillation", "torch.nn")
AUXILIARY = ("flambeau.training.distillation.auxiliary",)
ADAPTATIONS = ("flambeau.training.distillation.auxiliary", "torch.nn")
OPTIMIZERS = ("torch.optim",)
SCHEDULES = ("flambeau.training.schedules", "torch.optim.lr_scheduler")


def find(name: Any, packages: Sequence[str], allow: Sequence[str], what: str) -> Any:
    """The part that a config calls `name`: something callable as it is, a dotted name, or a name of `packages`.

    Raises:
        ConfigError: nothing has that name (with the nearest), or it may not be imported.
    """
    if callable(name):
        return name
    if not isinstance(name, str) or not name:
        raise ConfigError(f"{what}: expected a name, got {name!r}")
    if "." in name:
        return import_name(name, allow)
    known: list[str] = []
    for package in packages:
        if package.partition(".")[0] not in {root.partition(".")[0] for root in allow}:
            continue
        try:
            module = importlib.import_module(package)
        except ModuleNotFoundError as error:
            if error.name and package.startswith(error.name):
                continue
            raise
        public = getattr(module, "__all__", None) or [item for item in dir(module) if not item.startswith("_")]
        if name in public and callable(getattr(module, name)):
            return getattr(module, name)
        known += [item for item in public if callable(getattr(module, item, None))]
    nearest = ", ".join(get_close_matches(name, known, n=3, cutoff=0.5)) or "none"
    raise ConfigError(f"{what}: nothing in {', '.join(packages)} is called {name!r}; the nearest names are {nearest}")


def check_entry(entry: Any, packages: Sequence[str], allow: Sequence[str], what: str, given: int = 0) -> None:
    """Raise ConfigError if :func:`make` could not: an unknown name, or arguments that its class does not take.

    Nothing is made. Tags, and what is an object already, are passed over.

    Args:
        given: leading arguments that are not in the config (an optimiser's parameters).
    """
    if not isinstance(entry, Mapping):
        if not isinstance(entry, (nn.Module, Deferred)):
            raise ConfigError(f"{what}: expected key and kwargs, got {entry!r}")
        return
    key, kwargs = entry.get("key"), entry.get("kwargs") or {}
    if isinstance(key, Deferred) or isinstance(kwargs, Deferred):
        return
    if not isinstance(kwargs, Mapping) or not all(isinstance(name, str) for name in kwargs):
        raise ConfigError(f"{what}: kwargs: expected a mapping, got {kwargs!r}")
    factory = find(key, packages, allow, what)
    try:
        inspect.signature(factory).bind(*[None] * given, **kwargs)
    except TypeError as error:
        raise ConfigError(f"{what}: {key}: {error}") from None
    except ValueError:  # a builtin without a signature
        return


def make(entry: Any, packages: Sequence[str], allow: Sequence[str], what: str) -> Any:
    """The object that ``{key: name, kwargs: {...}}`` describes; a module as it is.

    Raises:
        ConfigError: an unknown name, or arguments that its class does not take.
    """
    if isinstance(entry, nn.Module):
        return entry
    if not isinstance(entry, Mapping) or "key" not in entry:
        raise ConfigError(f"{what}: expected key and kwargs, got {entry!r}")
    factory = find(entry["key"], packages, allow, what)
    try:
        return factory(**(entry.get("kwargs") or {}))
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"{what}: {entry['key']}: {error}") from error
