"""From symbolic to ordinary objects."""

from __future__ import annotations

import functools
import inspect
from typing import Any

from flambeau.symbolic.containers import adopt
from flambeau.symbolic.errors import SymbolicError
from flambeau.symbolic.node import Node
from flambeau.symbolic.paths import join
from flambeau.symbolic.symbol import POSITIONAL
from flambeau.symbolic.tree import MISSING, Tree


def build(value: Any) -> Any:
    """The ordinary object that a value describes, parts first; lists, tuples and dicts of nodes are built too.

    A node calls its target, a late-bound node gives ``functools.partial`` of it. The result has no tie to the tree.

    Raises:
        SymbolicError: a hyper value that is not decided, or a required argument that is missing; with its path. An
            error raised by a target has a note that says which path was being built.
    """
    tree = value if isinstance(value, Tree) else adopt(value)
    return _build(tree, "", {})


def clone(value: Any) -> Any:
    """An independent symbolic copy of a node, list, tuple or dict; other values are returned as they are."""
    return value.clone() if isinstance(value, Tree) else adopt(value)


def _build(value: Any, path: str, built: dict[int, Any]) -> Any:
    if not isinstance(value, Tree):
        return value
    if isinstance(value, Node):
        source = value._resolve()
        if source is not value:
            return _build(source, source.path if isinstance(source, Tree) else path, built)
        if id(value) not in built:
            built[id(value)] = _call(value, path, built)
        return built[id(value)]
    if isinstance(value, dict):
        return {key: _build(item, join(path, key), built) for key, item in value.items()}
    items = [_build(item, join(path, key), built) for key, item in value._items()]
    return tuple(items) if isinstance(value, tuple) else items


def _call(node: Node, path: str, built: dict[int, Any]) -> Any:
    node._refuse_build(path)
    fields = node.symbol.fields
    positional: list[Any] = []
    keywords: dict[str, Any] = {}
    variable = node.symbol.variable is not None and len(node._args[node.symbol.variable]) > 0
    for name, raw in node._args.items():
        if raw is MISSING:
            if not node.late:
                raise SymbolicError(f"{join(path, name)}: {node.symbol.label} requires this argument")
            continue
        value = _build(raw, join(path, name), built)
        kind = fields[name].kind if name in fields else inspect.Parameter.KEYWORD_ONLY
        if kind is inspect.Parameter.VAR_POSITIONAL:
            positional += value
        elif kind is inspect.Parameter.POSITIONAL_ONLY or (variable and kind in POSITIONAL):
            positional.append(value)
        elif isinstance(raw, Tree) or not (node.late and node._is_default(name)):  # the target's own default suffices
            keywords[name] = value
    if node.late:
        return functools.partial(node.target, *positional, **keywords)
    try:
        return node.target(*positional, **keywords)
    except Exception as error:
        if not getattr(error, "__notes__", None):
            error.add_note(f"while building {path or 'the root'}: {node.symbol.label}")
        raise
