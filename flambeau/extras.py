"""Packages that only some parts need, named with the pip line where they are missing."""

from __future__ import annotations

import importlib
from typing import Any


def require(module: str, extra: str) -> Any:
    """Import `module`, whose package the optional extra `extra` brings.

    Raises:
        ModuleNotFoundError: its package is not installed; the message has the pip line.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not module.startswith(error.name):
            raise
        message = f"this needs {error.name}: pip install 'flambeau[{extra}]'"
        raise ModuleNotFoundError(message, name=error.name) from None
