"""The packages that only maps need."""

from __future__ import annotations

import importlib
from typing import Any


def require(name: str) -> Any:
    """Import the module `name` of the extra ``geo``.

    Raises:
        ModuleNotFoundError: it is not installed; the message has the pip line.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not name.startswith(error.name):
            raise
        raise ModuleNotFoundError(f"maps need {error.name}: pip install 'flambeau[geo]'", name=error.name) from None
