"""Values that are read from an ancestor, so that one setting reaches every part that has a parameter of that name."""

from __future__ import annotations

from typing import Any

from flambeau.symbolic.errors import SymbolicError
from flambeau.symbolic.node import Node
from flambeau.symbolic.symbol import symbol_of
from flambeau.symbolic.tree import MISSING, Tree


class Inferred(Node):
    """See :func:`inferred`."""

    def _check_as(self, hint: Any, path: str) -> Any:
        return self  # what it stands for is known only in place

    def _resolve(self) -> Any:
        if self._parent is None:
            return self
        name = self._args["name"] or next(key for key in reversed(self.keys_from_root) if isinstance(key, str))
        place: Tree = self
        while place._parent is not None:
            holder = place._parent
            parts: Any = holder._args if isinstance(holder, Node) else holder if isinstance(holder, dict) else {}
            value = parts.get(name, MISSING)
            if value is not MISSING and value is not place:
                return value._resolve() if isinstance(value, Node) else value
            place = holder
        raise SymbolicError(f"{self.path}: no ancestor has a value for {name!r} to infer this from")

    def _refuse_build(self, path: str) -> None:
        raise SymbolicError(f"{path or 'the root'}: an inferred value needs an ancestor to be read from")


def inferred(name: str | None = None) -> Any:
    """A stand-in for the value that the nearest ancestor has under `name` (by default, under the stand-in's own key).

    It is looked up whenever it is read or built, so rebinding the ancestor is enough to change it everywhere.
    """
    return _SYMBOL(name=name)


_SYMBOL = symbol_of(inferred, Inferred)
