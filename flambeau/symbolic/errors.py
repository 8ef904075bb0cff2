"""The error of the symbolic layer, and the names nearest to a mistyped one."""

from __future__ import annotations

from collections.abc import Iterable


class SymbolicError(ValueError):
    """A path, value, decision or file that does not fit; the message starts with the full path where there is one."""


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown `name`: the names closest to it, or all of a short list."""
    from difflib import get_close_matches

    names = list(dict.fromkeys(str(k) for k in known))
    close = get_close_matches(name, names, n=3, cutoff=0.5) or [n for n in names if n.lower() == name.lower()]
    if close:
        return f"; did you mean {' or '.join(close)}?"
    if not names:
        return "; there are none"
    return f"; there are {', '.join(names[:12])}{', ...' if len(names) > 12 else ''}"
