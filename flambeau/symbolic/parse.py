"""Values from the command line: Python literals and calls of public parts, read from the syntax tree, not evaluated."""

from __future__ import annotations

import ast
import importlib
import inspect
from typing import Any

from flambeau.symbolic.containers import adopt
from flambeau.symbolic.errors import SymbolicError, nearest
from flambeau.symbolic.fields import shorten
from flambeau.symbolic.hyper import floatv, intv, manyof, oneof, permutate
from flambeau.symbolic.serialization import _allowed
from flambeau.symbolic.symbol import symbolize

ROOMS = ("data", "nn", "models", "objectives", "training", "search", "generation")
HYPERS = {function.__name__: function for function in (oneof, manyof, permutate, floatv, intv)}
WORDS = {"true": True, "false": False, "null": None}
LONGEST = 20_000


def parse_value(text: str) -> Any:
    """The value that `text` means.

    A Python literal; a call of a public part (``Trainer(steps=3)``, ``models.vision.ViT(depth=2)``,
    ``torch.nn.Linear(3, 4)``); ``partial(torch.optim.SGD, lr=0.1)``; ``oneof([...])``, ``manyof``, ``permutate``,
    ``floatv(1e-4, 1e-1, 'log')``, ``intv``; lists, tuples and dicts of those; ``true``, ``false``, ``null``. Any other
    text is a string.

    Raises:
        SymbolicError: a call of a part that does not exist (with the nearest names) or with arguments that do not fit.
    """
    text = text.strip()
    if len(text) > LONGEST:
        raise SymbolicError(f"a value has at most {LONGEST} characters, got {len(text)}")
    if text in WORDS:
        return WORDS[text]
    try:
        tree = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return text
    if isinstance(tree, ast.Attribute) and (found := _torch_name(_dotted(tree))) is not None:
        return found
    if not _is_value(tree):
        return text
    try:
        return adopt(_value(tree, text))
    except RecursionError:
        raise SymbolicError("the value is nested too deeply") from None


def _is_value(tree: ast.expr) -> bool:
    """Whether an expression means something beside its own text."""
    if isinstance(tree, ast.UnaryOp):
        return isinstance(tree.op, (ast.USub, ast.UAdd)) and _is_value(tree.operand)
    return isinstance(tree, (ast.Constant, ast.List, ast.Tuple, ast.Dict, ast.Call)) and not (
        isinstance(tree, ast.Constant) and tree.value is Ellipsis
    )


def _value(tree: ast.expr, text: str) -> Any:
    if isinstance(tree, ast.Constant) and (tree.value is None or isinstance(tree.value, (bool, int, float, str))):
        return tree.value
    if isinstance(tree, ast.List):
        return [_value(item, text) for item in tree.elts]
    if isinstance(tree, ast.Tuple):
        return tuple(_value(item, text) for item in tree.elts)
    if isinstance(tree, ast.Dict) and None not in tree.keys:
        return {_value(key, text): _value(item, text) for key, item in zip(tree.keys, tree.values)}  # type: ignore[arg-type]
    if isinstance(tree, ast.Name):
        return WORDS.get(tree.id, tree.id)
    if isinstance(tree, ast.Attribute) and (name := _dotted(tree)) is not None:
        found = _torch_name(name)
        return name if found is None else found
    if isinstance(tree, ast.UnaryOp) and isinstance(tree.op, (ast.USub, ast.UAdd)):
        number = _value(tree.operand, text)
        if isinstance(number, (int, float)) and not isinstance(number, bool):
            return -number if isinstance(tree.op, ast.USub) else number
    if isinstance(tree, ast.Call):
        return _call(tree, text)
    raise SymbolicError(f"{shorten(ast.unparse(tree))} in {shorten(text)} is not a literal or a call of a part")


def _call(tree: ast.Call, text: str) -> Any:
    name = _dotted(tree.func)
    if name is None:
        raise SymbolicError(f"{shorten(ast.unparse(tree.func))} in {shorten(text)} is not the name of a part")
    if any(isinstance(a, ast.Starred) for a in tree.args) or any(k.arg is None for k in tree.keywords):
        raise SymbolicError(f"{shorten(text)}: * and ** are not known in a value")
    keywords = {str(k.arg): _value(k.value, text) for k in tree.keywords}
    if name == "partial":
        target = _dotted(tree.args[0]) if tree.args else None
        if target is None:
            raise SymbolicError(f"{shorten(text)}: partial needs the name of a class or function first")
        return symbolize(part(target)).partial(*(_value(a, text) for a in tree.args[1:]), **keywords)
    args = [_value(a, text) for a in tree.args]
    if name in HYPERS:
        try:
            return HYPERS[name](*args, **keywords)
        except TypeError as error:
            raise SymbolicError(f"{shorten(text)}: {error}") from None
    return symbolize(part(name))(*args, **keywords)


def part(name: str) -> Any:
    """The public class or function called `name`: bare (``Trainer``), in a room (``models.vision.ViT``), or of torch.

    Raises:
        SymbolicError: there is none; with the nearest names.
    """
    if (found := _torch_name(name)) is not None:
        return found
    if name.startswith("torch."):
        raise SymbolicError(f"{name}: only classes and functions of torch.nn and torch.optim can be named")
    *rooms, last = name.removeprefix("flambeau.").split(".")
    if rooms:
        module = _import(f"flambeau.{'.'.join(rooms)}") if rooms[0] in ROOMS else None
        if module is None:
            raise SymbolicError(f"{name}: there is no room {'.'.join(rooms)!r}{nearest(rooms[0], ROOMS)}")
        if last not in (names := public_names(module)):
            raise SymbolicError(f"{name}: {module.__name__} has no {last!r}{nearest(last, names)}")
        return getattr(module, last)
    known: list[str] = [*HYPERS, "partial"]
    for room in ROOMS:
        module = _import(f"flambeau.{room}")
        if module is None:
            continue
        names = public_names(module)
        if last in names:
            return getattr(module, last)
        known += names
    raise SymbolicError(f"{name}: there is no part of that name{nearest(name, known)}")


def public_names(module: Any) -> list[str]:
    """The classes and functions that a module offers: its ``__all__``, or else flambeau's own without underscore."""
    names = getattr(module, "__all__", None) or [name for name in vars(module) if not name.startswith("_")]
    return [
        name
        for name in names
        if (inspect.isclass(found := getattr(module, name, None)) or inspect.isroutine(found))
        and (getattr(found, "__module__", "") or "").startswith("flambeau.")
    ]


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name == name or (error.name or "").split(".")[0] != "flambeau":
            return None  # no such room, or one whose optional extra is not installed
        raise


def _torch_name(name: str | None) -> Any:
    """The class or function of torch.nn or torch.optim called `name`, or None."""
    if name is None or not name.startswith(("torch.nn.", "torch.optim.")):
        return None
    parts = name.split(".")
    for cut in range(len(parts) - 1, 1, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for attribute in parts[cut:]:
            found = getattr(found, attribute, None) if not attribute.startswith("_") else None
        if not (inspect.isclass(found) or inspect.isroutine(found)):
            known = [n for n in dir(importlib.import_module(".".join(parts[:2]))) if not n.startswith("_")]
            raise SymbolicError(f"{name}: no such class or function{nearest(parts[-1], known)}")
        home = found.__module__ or ""
        if not (_allowed(home) or home.startswith("torch._C._nn")):
            raise SymbolicError(f"{name}: this belongs to {home}, only parts of torch.nn and torch.optim can be named")
        return found
    return None


def _dotted(tree: ast.expr) -> str | None:
    """``a.b.c`` as text, or None for another expression."""
    if isinstance(tree, ast.Name):
        return tree.id
    if isinstance(tree, ast.Attribute) and (before := _dotted(tree.value)) is not None:
        return f"{before}.{tree.attr}"
    return None
