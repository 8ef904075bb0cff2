"""Paths into a tree, written as in Python: ``layers[2].channels``, ``table['a b'].x``; the root is the empty path."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence

from flambeau.symbolic.errors import SymbolicError

Key = str | int

_STEP = re.compile(r"""(?:^|\.)([^\W\d]\w*)|\[(\d+)\]|\[('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")\]""")
LONGEST = 4096


def parse_path(text: str) -> tuple[Key, ...]:
    """The keys of a path: names and string keys as str, list positions as int.

    Raises:
        SymbolicError: the text is not a path.
    """
    if not isinstance(text, str):
        raise SymbolicError(f"a path is a string such as 'layers[2].channels', got {text!r}")
    if len(text) > LONGEST:
        raise SymbolicError(f"a path has at most {LONGEST} characters, got {len(text)}")
    keys: list[Key] = []
    end = 0
    while end < len(text):
        step = _STEP.match(text, end)
        if step is None or (end == 0 and text[0] == "."):
            raise SymbolicError(f"{text!r} is not a path such as 'layers[2].channels' (at character {end})")
        name, position, quoted = step.groups()
        keys.append(name if name else int(position) if position else ast.literal_eval(quoted))
        end = step.end()
    return tuple(keys)


def format_path(keys: Sequence[Key]) -> str:
    """The text of a path; the inverse of :func:`parse_path`."""
    text = ""
    for key in keys:
        if isinstance(key, str) and key.isidentifier():
            text += f".{key}" if text else key
        else:
            text += f"[{key!r}]"
    return text


def join(parent: str, key: Key) -> str:
    """The path of a child."""
    if isinstance(key, str) and key.isidentifier():
        return f"{parent}.{key}" if parent else key
    return f"{parent}[{key!r}]"
