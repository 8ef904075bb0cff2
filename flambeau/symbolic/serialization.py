"""Trees as JSON and YAML, and their digest. Reading executes nothing and imports only what is allow-listed."""

from __future__ import annotations

import enum
import importlib
import inspect
import json
import math
import numbers
import os
import pathlib
import sys
from typing import Any

from flambeau.symbolic.containers import adopt
from flambeau.symbolic.errors import SymbolicError, nearest
from flambeau.symbolic.fields import shorten
from flambeau.symbolic.hyper import HYPER_SYMBOLS, is_lazy
from flambeau.symbolic.node import Node
from flambeau.symbolic.paths import join
from flambeau.symbolic.symbol import Symbol, name_of, registered, symbolize
from flambeau.symbolic.tree import MISSING, Tree

FORMAT = 1
ALLOWED_ROOTS = ("flambeau", "torch.nn", "torch.optim")
_MACHINERY = ("flambeau.app", "flambeau.files", "flambeau.symbolic")
_VALUES = ("flambeau.symbolic.hyper", "flambeau.symbolic.inferred")
LARGEST = 16 << 20  # characters of a file
MOST = 200_000  # values in a file
DEEPEST = 150  # nesting


def to_json(value: Any) -> dict[str, Any]:
    """A value (nodes, hyper values, containers, numbers, text, importable classes and functions) as a JSON value.

    Raises:
        SymbolicError: something that cannot be written, such as a lambda or a tensor; with its path.
    """
    return {"flambeau": FORMAT, "value": _write(value, "")}


def from_json(data: Any, trusted: bool = False) -> Any:
    """The inverse of :func:`to_json`; also takes its text. Classes and functions are looked up, never called.

    Building the result calls what it names: read a file of unknown origin, then look at it before ``build``.

    Args:
        trusted: import whatever the data names. Otherwise only what is below flambeau, torch.nn and torch.optim, or was
            symbolised in this process.

    Raises:
        SymbolicError: not this format or version, too large or too deep, a name that is not allowed or not found, or a
            value that does not fit; with its path.
    """
    if isinstance(data, str):
        if len(data) > LARGEST:
            raise SymbolicError(f"at most {LARGEST} characters are read, got {len(data)}")
        try:
            data = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise SymbolicError(f"not JSON: {error}") from None
    if not isinstance(data, dict) or set(data) != {"flambeau", "value"}:
        raise SymbolicError(f'expected {{"flambeau": {FORMAT}, "value": ...}}, got {shorten(data)}')
    if data["flambeau"] != FORMAT:
        raise SymbolicError(f"format {data['flambeau']!r} is not known; this version reads {FORMAT}")
    return _Reader(trusted).read(data["value"], "", 0)


def to_yaml(value: Any) -> str:
    """:func:`to_json` as YAML text."""
    import yaml

    return yaml.safe_dump(to_json(value), sort_keys=False)


def from_yaml(text: str, trusted: bool = False) -> Any:
    """The inverse of :func:`to_yaml`; see :func:`from_json`."""
    import yaml

    if len(text) > LARGEST:
        raise SymbolicError(f"at most {LARGEST} characters are read, got {len(text)}")
    try:
        data = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise SymbolicError(f"not YAML: {error}") from None
    if isinstance(data, str):
        raise SymbolicError(f"expected a mapping with the key 'flambeau', got {shorten(data)}")
    return from_json(data, trusted)


def save(value: Any, path: str | os.PathLike[str]) -> None:
    """Write a value to a ``.json``, ``.yaml`` or ``.yml`` file, whole or not at all."""
    path = pathlib.Path(path)
    yaml = _is_yaml(path)
    text = to_yaml(value) if yaml else json.dumps(to_json(value), indent=1, allow_nan=False) + "\n"
    from flambeau.files import write_bytes

    write_bytes(path, text.encode())


def load(path: str | os.PathLike[str], trusted: bool = False) -> Any:
    """Read a file that :func:`save` wrote; see :func:`from_json` for `trusted` and errors."""
    path = pathlib.Path(path)
    yaml = _is_yaml(path)
    if path.stat().st_size > LARGEST:
        raise SymbolicError(f"{path}: at most {LARGEST} bytes are read, got {path.stat().st_size}")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise SymbolicError(f"{path}: not UTF-8 text ({error})") from None
    try:
        return (from_yaml if yaml else from_json)(text, trusted)
    except SymbolicError as error:
        raise SymbolicError(f"{path}: {error}") from None


def digest(value: Any) -> str:
    """SHA-256 of a value's canonical form: class names and arguments sorted by name, floats by their hexadecimal form.

    Equal across processes and machines; different for 1, 1.0 and True.

    Raises:
        SymbolicError: something without a canonical form, such as a lambda or a tensor; with its path.
    """
    import hashlib

    text = json.dumps(_canonical(value, ""), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _is_yaml(path: pathlib.Path) -> bool:
    if path.suffix not in (".json", ".yaml", ".yml"):
        raise SymbolicError(f"{path}: expected a name that ends in .json, .yaml or .yml")
    return path.suffix != ".json"


def _write(value: Any, path: str) -> Any:
    if value is None or isinstance(value, (bool, str)):
        return str(value) if isinstance(value, str) else value
    if isinstance(value, enum.Enum):
        return {"_ref": f"{name_of(type(value))}.{value.name}"}
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        number = float(value)
        return number if math.isfinite(number) else {"_float": repr(number)}
    if isinstance(value, Node):
        args = {name: _write_argument(value, name, item, join(path, name)) for name, item in value._args.items()}
        written = {"_call": reference(value.target, path), "args": {n: a for n, a in args.items() if a is not MISSING}}
        return written | {"late": True} if value.late else written
    if type(value) in (list, tuple, dict):
        value = adopt(value)
    if isinstance(value, Tree) and isinstance(value, dict):
        if all(isinstance(key, str) and not key.startswith("_") for key in value):
            return {key: _write(item, join(path, key)) for key, item in value.items()}
        return {"_dict": [[_write(key, path), _write(item, join(path, key))] for key, item in value.items()]}
    if isinstance(value, Tree):
        items = [_write(item, join(path, key)) for key, item in value._items()]
        return {"_tuple": items} if isinstance(value, tuple) else items
    if isinstance(value, pathlib.PurePath):
        return {"_path": str(value)}
    if _is_dtype(value) or inspect.isclass(value) or inspect.isroutine(value):
        return {"_ref": reference(value, path)}
    raise SymbolicError(f"{path or 'the root'}: {shorten(value)} ({type(value).__name__}) cannot be written to a file")


def _write_argument(node: Node, name: str, value: Any, path: str) -> Any:
    """An argument as JSON; MISSING for one that is missing, or a default that cannot be written and need not be."""
    if value is MISSING:
        return MISSING
    try:
        return _write(value, path)
    except SymbolicError:
        if node._is_default(name):
            return MISSING
        raise


def reference(target: Any, path: str = "") -> str:
    """``module:qualified name`` of an importable class or function.

    Raises:
        SymbolicError: a lambda, or something that is not found under its own name; with the path.
    """
    at = path or "the root"
    if _is_dtype(target):
        return str(target).replace(".", ":", 1)
    name = name_of(target)
    if "<lambda>" in name:
        raise SymbolicError(f"{at}: a lambda cannot be written to a file; use a function defined in a module")
    module, _, qualified = name.partition(":")
    found: Any = sys.modules.get(module)
    for part in qualified.split("."):
        found = getattr(found, part, None)
    found = found.target if isinstance(found, Symbol) else found
    if found is not target and not (inspect.ismethod(target) and found == target):
        raise SymbolicError(f"{at}: {name} cannot be written to a file: it is not importable under that name")
    return name


def _is_dtype(value: Any) -> bool:
    return type(value).__module__ == "torch" and type(value).__name__ == "dtype"


def _allowed(module: str) -> bool:
    """Whether a file may name what is defined in a module; the library's own machinery is not a part of programs."""
    if module in _VALUES:
        return True
    return _below(module, ALLOWED_ROOTS) and not _below(module, _MACHINERY)


def _below(module: str, roots: tuple[str, ...]) -> bool:
    return any(module == root or module.startswith(f"{root}.") for root in roots)


def lookup(name: Any, path: str = "", trusted: bool = False) -> Any:
    """The class, function, enum member or torch dtype called ``module:qualified name``.

    Raises:
        SymbolicError: not allowed without ``trusted``, or not found; with the path.
    """
    at = path or "the root"
    module, colon, qualified = name.partition(":") if isinstance(name, str) else ("", "", "")
    if not colon or not all(part.isidentifier() for part in (*module.split("."), *qualified.split("."))):
        raise SymbolicError(f"{at}: expected 'module:name', got {shorten(name)}")
    if (symbol := registered(name)) is not None:
        return symbol.target
    if not trusted and not (_allowed(module) or module == "torch"):
        raise SymbolicError(
            f"{at}: {name} is outside {', '.join(ALLOWED_ROOTS)}; symbolize it first, or load with trusted=True"
        )
    if any(part.startswith("__") for part in qualified.split(".")):
        raise SymbolicError(f"{at}: {name} is not a public name")
    try:
        found: Any = importlib.import_module(module)
    except ImportError as error:
        raise SymbolicError(f"{at}: {name} cannot be imported: {error}") from None
    for i, part in enumerate(qualified.split(".")):
        if i and not inspect.isclass(found) and not trusted:
            raise SymbolicError(f"{at}: {name} is not a class or function of {module}")
        if not hasattr(found, part):
            raise SymbolicError(f"{at}: {module} has no {qualified}")
        found = getattr(found, part)
    found = found.target if isinstance(found, Symbol) else found
    if _is_dtype(found):
        return found
    # A module's names include what it imported: `flambeau.x:os.system` must not pass for flambeau's.
    home = type(found).__module__ if isinstance(found, enum.Enum) else getattr(found, "__module__", None) or ""
    known = inspect.isclass(found) or inspect.isroutine(found) or isinstance(found, enum.Enum)
    if not known or not (trusted or _allowed(home) or (home.startswith("torch._C._nn") and _allowed(module))):
        raise SymbolicError(f"{at}: {name} is not a class or function of {' or '.join(ALLOWED_ROOTS)}")
    return found


class _Reader:
    def __init__(self, trusted: bool):
        self.trusted, self.left = trusted, MOST

    def read(self, data: Any, path: str, depth: int) -> Any:
        self.left -= 1
        if depth > DEEPEST:
            raise SymbolicError(f"{path}: at most {DEEPEST} levels are read")
        if self.left < 0:
            raise SymbolicError(f"{path}: at most {MOST} values are read")
        if isinstance(data, list):
            return adopt([self.read(item, join(path, i), depth + 1) for i, item in enumerate(data)])
        if isinstance(data, dict):
            return self._read_object(data, path, depth)
        if data is None or isinstance(data, (bool, int, float, str)):
            return data
        raise SymbolicError(f"{path}: {shorten(data)} ({type(data).__name__}) is not JSON")

    def _read_object(self, data: dict[Any, Any], path: str, depth: int) -> Any:
        at = path or "the root"
        tags = [key for key in data if isinstance(key, str) and key.startswith("_")]
        if not tags:
            if not all(isinstance(key, str) for key in data):
                raise SymbolicError(f"{at}: the keys of an object are strings, got {shorten(list(data))}")
            return adopt({key: self.read(item, join(path, key), depth + 1) for key, item in data.items()})
        tag = tags[0]
        if tag == "_call":
            return self._read_call(data, path, depth)
        content = data[tag]
        if len(data) > 1:
            raise SymbolicError(f"{at}: {tag} stands alone, got {shorten(data)}")
        if tag == "_ref":
            return lookup(content, path, self.trusted)
        if tag == "_tuple" and isinstance(content, list):
            return adopt(tuple(self.read(item, join(path, i), depth + 1) for i, item in enumerate(content)))
        if tag == "_dict" and isinstance(content, list) and all(isinstance(p, list) and len(p) == 2 for p in content):
            pairs = [(self.read(key, path, depth + 1), item) for key, item in content]
            try:
                return adopt({key: self.read(item, join(path, key), depth + 1) for key, item in pairs})
            except TypeError as error:
                raise SymbolicError(f"{at}: {error}") from None
        if tag == "_float" and content in ("nan", "inf", "-inf"):
            return float(content)
        if tag == "_path" and isinstance(content, str):
            return pathlib.Path(content)
        raise SymbolicError(f"{at}: {shorten(data)} is not known to this version")

    def _read_call(self, data: dict[str, Any], path: str, depth: int) -> Any:
        at = path or "the root"
        args = data.get("args")
        if not isinstance(args, dict) or not data.keys() <= {"_call", "args", "late"}:
            raise SymbolicError(f"{at}: a call is {{'_call': ..., 'args': {{...}}}}, got {shorten(data)}")
        target = lookup(data["_call"], path, self.trusted)
        if not (inspect.isclass(target) or inspect.isroutine(target)):
            raise SymbolicError(f"{at}: {data['_call']} cannot be called")
        symbol = HYPER_SYMBOLS.get(target) or symbolize(target)
        given = {name: self.read(item, join(path, name), depth + 1) for name, item in args.items()}
        for name in given:
            if symbol.field(name) is None:
                raise SymbolicError(f"{join(path, name)}: unknown argument{nearest(name, symbol.fields)}")
        for name, field in symbol.fields.items():
            if field.required and name not in given and not data.get("late"):
                raise SymbolicError(f"{join(path, name)}: {symbol.label} requires this argument")
        try:
            return symbol.kind(symbol, given, late=bool(data.get("late")))
        except SymbolicError as error:
            raise SymbolicError(f"{at}: {error}") from None


def _canonical(value: Any, path: str) -> Any:
    if value is None or isinstance(value, (bool, str)):
        return value if value is None or isinstance(value, bool) else str(value)
    if isinstance(value, enum.Enum):
        return {"enum": f"{name_of(type(value))}.{value.name}"}
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return {"float": float(value).hex()}
    if isinstance(value, Node):
        args = {name: _canonical_argument(value, name, item, join(path, name)) for name, item in value._args.items()}
        return {"call": _name(value.target, path), "late": value.late, "args": args}
    if isinstance(value, dict):
        pairs = [[_canonical(key, path), _canonical(item, join(path, key))] for key, item in value.items()]
        return {"dict": sorted(pairs, key=lambda pair: json.dumps(pair[0], sort_keys=True))}
    if isinstance(value, (list, tuple)):
        items = [_canonical(item, join(path, i)) for i, item in enumerate(value)]
        return {"tuple": items} if isinstance(value, tuple) else items
    if isinstance(value, pathlib.PurePath):
        return {"path": str(value)}
    if _is_dtype(value):
        return {"ref": str(value)}
    if hasattr(value, "to_numbers") and hasattr(value, "to_json"):
        return {"dna": _canonical(value.to_json(), path)}
    if inspect.isclass(value) or inspect.isroutine(value):
        return {"ref": _name(value, path)}
    raise SymbolicError(f"{path or 'the root'}: {shorten(value)} ({type(value).__name__}) has no canonical form")


def _canonical_argument(node: Node, name: str, value: Any, path: str) -> Any:
    if value is MISSING:
        return {"missing": True}
    try:
        return _canonical(value, path)
    except SymbolicError:
        if node._is_default(name):
            return {"default": True}
        raise


def _name(target: Any, path: str) -> str:
    name = name_of(target)
    if "<lambda>" in name:
        lazy = " (a lazy candidate)" if is_lazy(target) else ""
        raise SymbolicError(f"{path or 'the root'}: a lambda{lazy} has no canonical form; use a named function")
    return name
