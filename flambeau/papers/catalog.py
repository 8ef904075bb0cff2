"""The catalog: every paper of the collection, and what its experiment declares, read without importing torch."""

from __future__ import annotations

import ast
import difflib
import importlib
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from flambeau.experiment.claims import Claim
from flambeau.experiment.definition import Experiment

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Paper:
    """A paper of the collection.

    Attributes:
        key: name used on the command line and of the module ``flambeau.papers.KEY``.
        code: address of the authors' repository, or ``""``.
        family: what kind of system it is; ``flambeau list --family`` filters by it.
    """

    key: str
    title: str
    authors: str
    year: int
    arxiv: str
    code: str
    family: str

    @property
    def runs(self) -> bool:
        """Whether the paper's experiment is part of this version."""
        return (FOLDER / f"{self.key}.py").exists()


@cache
def catalog() -> dict[str, Paper]:
    """All papers by key, in alphabetical order."""
    with (FOLDER / "catalog.toml").open("rb") as file:
        entries = tomllib.load(file)
    return {key: Paper(key=key, **entries[key]) for key in sorted(entries)}


def find(key: str) -> Paper:
    """The paper of that key.

    Raises:
        ValueError: unknown key; the message names the nearest ones.
    """
    papers = catalog()
    if key in papers:
        return papers[key]
    near = difflib.get_close_matches(key, papers, n=3, cutoff=0.4)
    near += [k for k, p in papers.items() if key.lower() in p.title.lower() and k not in near][:3]
    raise ValueError(f"unknown paper {key!r}" + (f"; nearest: {', '.join(near)}" if near else "; see `flambeau list`"))


def load(key: str) -> Experiment:
    """The experiment of a paper (imports torch).

    Raises:
        ValueError: unknown key, or a paper whose experiment is not part of this version.
    """
    paper = find(key)
    if not paper.runs:
        running = ", ".join(k for k, p in catalog().items() if p.runs)
        raise ValueError(f"{key} has no experiment in this version yet; these run: {running}")
    return importlib.import_module(f"flambeau.papers.{key}").run.experiment


@dataclass(frozen=True)
class Description:
    """What a paper's module declares, read from its source.

    Attributes:
        summary: the module's docstring.
        parameters: (name, annotation, default) of the experiment, as written.
        presets: preset name -> {path: value as written}.
        documentation: the docstring of the experiment's function.
    """

    summary: str
    documentation: str
    parameters: list[tuple[str, str, str]]
    claims: list[Claim]
    presets: dict[str, dict[str, str]]


def describe(key: str) -> Description:
    """Read the declarations of a paper's module from its source, so that showing a paper does not import torch."""
    module = ast.parse((FOLDER / f"{key}.py").read_text(encoding="utf-8"))
    constants: dict[str, ast.expr] = {}
    for node in module.body:
        if isinstance(node, ast.Assign):
            constants |= {target.id: node.value for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
            constants[node.target.id] = node.value
    function = next(node for node in module.body if isinstance(node, ast.FunctionDef) and node.name == "run")
    arguments = zip(function.args.kwonlyargs, function.args.kw_defaults)
    return Description(
        summary=ast.get_docstring(module) or "",
        documentation=ast.get_docstring(function) or "",
        parameters=[(argument.arg, _source(argument.annotation), _source(default)) for argument, default in arguments],
        claims=[_claim(call) for call in constants["CLAIMS"].elts],  # type: ignore[attr-defined]
        presets={name: _mapping(value) for name, value in _items(constants["PRESETS"])},
    )


def _claim(call: ast.expr) -> Claim:
    assert isinstance(call, ast.Call)
    values: list[Any] = [ast.literal_eval(argument) for argument in call.args]
    return Claim(*values, **{k.arg: ast.literal_eval(k.value) for k in call.keywords if k.arg})


def _items(node: ast.expr) -> list[tuple[str, ast.expr]]:
    """The entries of ``{...}`` or ``dict(name=..., **{...})``."""
    if isinstance(node, ast.Dict):
        return [(ast.literal_eval(k), v) for k, v in zip(node.keys, node.values) if k is not None]
    assert isinstance(node, ast.Call)
    named = [(k.arg, k.value) for k in node.keywords if k.arg]
    return named + [item for k in node.keywords if k.arg is None for item in _items(k.value)]


def _mapping(node: ast.expr) -> dict[str, str]:
    return {name: _source(value) for name, value in _items(node)}


def _source(node: ast.expr | None) -> str:
    return ast.unparse(node) if node is not None else ""
