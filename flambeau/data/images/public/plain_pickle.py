"""Reading pickles of plain data without executing them."""

from __future__ import annotations

import io
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np

MAX_BYTES = 512 << 20

# Numbers, strings, tuples, lists, dicts, the memo, and what an array is made of. Left out is all that looks up objects
# in other ways, allocates what a header announces, or makes instances of classes.
_OPCODES = (
    "PROTO STOP MARK NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG1 BINFLOAT "
    "STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE BINBYTES SHORT_BINBYTES "
    "EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 LIST EMPTY_LIST APPEND APPENDS DICT EMPTY_DICT SETITEM SETITEMS "
    "PUT BINPUT LONG_BINPUT GET BINGET LONG_BINGET MEMOIZE POP POP_MARK DUP FRAME GLOBAL STACK_GLOBAL REDUCE BUILD"
).split()


def read_plain_pickle(path: Path) -> Any:
    """What is in a pickle of dicts, lists, numbers, strings (as bytes) and arrays of bytes; nothing is imported or run.

    An array is taken from its bytes in the file, not by NumPy's own means.

    Raises:
        FileNotFoundError: no such file.
        ValueError: more than 512 MB, a pickle that is not whole, or one that holds anything else; names the file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing")
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{path} has {path.stat().st_size} bytes; at most {MAX_BYTES} are read")
    try:
        return _finished(_Reader(io.BytesIO(path.read_bytes()), encoding="bytes").load())
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path} is no pickle of plain data: {error}") from None
    except Exception as error:  # whatever a pickle that is not whole makes the reader stumble over
        raise ValueError(f"{path} is no whole pickle: {type(error).__name__}: {error}") from None


class _Type:
    """Stands for a NumPy data type: its code, such as "u1"."""

    def __init__(self, *arguments: Any):
        self.code = arguments[0] if arguments else None


class _Array:
    """Stands for a NumPy array until its shape, type and bytes are known."""

    def __init__(self, *arguments: Any):
        self.state: Any = None

    def array(self) -> np.ndarray:
        if not isinstance(self.state, tuple) or len(self.state) != 5:
            raise pickle.UnpicklingError("an array without its content")
        _, shape, kind, column_major, content = self.state
        if not isinstance(kind, _Type) or kind.code not in (b"u1", "u1"):
            raise pickle.UnpicklingError(f"an array of {getattr(kind, 'code', kind)!r}, expected bytes (u1)")
        if not isinstance(content, bytes) or not isinstance(shape, tuple) or math.prod(shape) != len(content):
            raise pickle.UnpicklingError(f"an array whose content does not fill its shape {shape!r:.80}")
        return np.frombuffer(content, np.uint8).reshape(shape, order="F" if column_major else "C")


def _encoded(*arguments: Any) -> bytes:
    """Stands for ``_codecs.encode``, by which Python 3 writes bytes in old protocols."""
    text, coding = arguments
    if not isinstance(text, str) or coding not in ("latin1", b"latin1"):
        raise pickle.UnpicklingError("bytes in an unknown coding")
    return text.encode("latin1")


class _Marker:
    """Stands for the class ``numpy.ndarray``, which is only handed on."""


_NAMES = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy", "ndarray"): _Marker,
    ("numpy", "dtype"): _Type,
    ("_codecs", "encode"): _encoded,
}


class _Reader(pickle._Unpickler):
    """Python's own reader with fewer opcodes and five names; its memo is a dict, so a forged index costs nothing."""

    stack: list[Any]
    dispatch = {getattr(pickle, name)[0]: pickle._Unpickler.dispatch[getattr(pickle, name)[0]] for name in _OPCODES}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _NAMES:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return _NAMES[module, name]

    def load_build(self) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if isinstance(target, _Array):
            target.state = state
        elif not isinstance(target, _Type):
            raise pickle.UnpicklingError(f"it changes a {type(target).__name__}")

    dispatch[pickle.BUILD[0]] = load_build  # type: ignore[assignment]


def _finished(value: Any) -> Any:
    """`value` with its arrays made; only as deep as the published files go."""
    if isinstance(value, _Array):
        return value.array()
    if isinstance(value, dict):
        return {key: item.array() if isinstance(item, _Array) else item for key, item in value.items()}
    return value
