"""An experiment: a function whose keyword parameters are a symbolic tree, with presets and the claims it measures."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flambeau.experiment.claims import Claim
from flambeau.symbolic import Node, load, patch, symbolize


@dataclass(frozen=True)
class Experiment:
    """A paper's experiment: what it measures, and the presets that change its parameters.

    Attributes:
        key: the paper's key in the catalog.
        claims: the claims that a run measures.
        presets: preset name -> {path: value}; ``cpu`` is the function's own defaults.
        function: ``function(run, **parameters)``.
    """

    key: str
    claims: tuple[Claim, ...]
    presets: Mapping[str, Mapping[str, Any]]
    function: Callable[..., None]

    def tree(self, preset: str = "cpu", overrides: Sequence[str] = (), config: Path | None = None) -> Node:
        """The parameters as a symbolic tree: the defaults, then the preset, then ``path=value`` overrides.

        Args:
            config: a file with saved parameters (a run's ``config.json``, a search's ``best.json``), in place of the
                defaults and the preset.

        Raises:
            ValueError: unknown preset, path or value, with the nearest names; a file that holds something else.
        """
        if config is not None:
            saved = load(config)
            if not isinstance(saved, Node) or saved.target is not self.function:
                raise ValueError(f"{config}: these are not the parameters of {self.key}")
            return patch(saved, list(overrides))
        if preset != "cpu" and preset not in self.presets:
            raise ValueError(f"unknown preset {preset!r} of {self.key}; it has {', '.join(['cpu', *self.presets])}")
        defaults = {
            name: parameter.default
            for name, parameter in inspect.signature(self.function).parameters.items()
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY and parameter.default is not inspect.Parameter.empty
        }
        tree = symbolize(self.function).partial(**defaults).clone()
        if preset != "cpu":
            for path, value in self.presets[preset].items():
                tree.rebind({path: value})
        return patch(tree, list(overrides))


def experiment(
    key: str, *, claims: Sequence[Claim], presets: Mapping[str, Mapping[str, Any]]
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Declare ``run(run, *, parameter=default, ...)`` as the experiment of the paper `key`.

    The function stays a plain function; the declaration is its attribute ``experiment``.

    Raises:
        ValueError: two claims of one name.
        TypeError: the function's parameters are not ``(run, *, name=default, ...)``.
    """
    names = [claim.name for claim in claims]
    if len(set(names)) != len(names):
        raise ValueError(f"claims of {key} must have distinct names, got {names}")

    def declare(function: Callable[..., None]) -> Callable[..., None]:
        first, *rest = inspect.signature(function).parameters.values()
        if any(p.kind is not p.KEYWORD_ONLY or p.default is p.empty for p in rest):
            raise TypeError(
                f"{key}: an experiment is run(run, *, name=default, ...), got {inspect.signature(function)}"
            )
        function.experiment = Experiment(key, tuple(claims), presets, function)  # type: ignore[attr-defined]
        return function

    return declare
