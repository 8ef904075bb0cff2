"""The YAML tags of a distillation config, as values that are built when they are used: reading a file runs nothing."""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from flambeau.training.identity import describe

MAX_NODES = 100_000  # of a file, aliases counted as often as they are used
MAX_DEPTH = 100
MAX_TEXT = 4096  # characters that a tag may join
# Roots are shorthands for the packages below them that hold parts; functions that read pickles, download code or run
# commands lie elsewhere.
ROOTS = {
    "torch": ("torch.nn", "torch.optim", "torch.utils.data"),
    "flambeau": (
        "flambeau.data",
        "flambeau.models",
        "flambeau.nn",
        "flambeau.objectives",
        "flambeau.training.distillation.auxiliary",
        "flambeau.training.schedules",
    ),
}
FILES = "torch.utils.data.datapipes"  # some of them open files for writing
TORCH_VALUES = ("device", "tensor", "zeros", "ones", "arange", "Generator", "Size")
PLAIN = (nn.Module, Tensor, torch.optim.Optimizer, str, int, float, list, tuple, dict)


class ConfigError(ValueError):
    """A config that cannot be used; the message names the file and the line, or the key."""


@dataclass(frozen=True)
class Deferred:
    """A tag with its arguments. Two readings of one file give equal values; :func:`resolve` makes the object."""

    tag: str
    arguments: Any
    where: str
    allow: tuple[str, ...]


def resolve(value: Any, built: dict[int, Any] | None = None) -> Any:
    """`value` with every tag in it carried out; a tag that is used through several aliases gives one object.

    Args:
        value: from :func:`~flambeau.training.distillation.config.load_config`; it is not changed.
        built: objects of tags that were carried out before, by identity of the tag; new ones are added.

    Raises:
        ConfigError: an import, call or attribute failed or is not allowed; the message names file and line.
    """
    built = {} if built is None else built
    if isinstance(value, dict):
        return {key: resolve(item, built) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)([resolve(item, built) for item in value])
    if not isinstance(value, Deferred):
        return value
    if id(value) not in built:
        arguments = resolve(value.arguments, built)
        try:
            built[id(value)] = TAGS[value.tag](arguments, value.allow)
        except ConfigError as error:
            raise ConfigError(f"{value.where}: {error}") from None
        except Exception as error:
            told = f"{type(error).__name__}: {error}"
            raise ConfigError(f"{value.where}: {value.tag} of {_named(value.arguments)} failed: {told}") from error
    return built[id(value)]


def plain(value: Any) -> Any:
    """A section without what does not decide the outcome: lines of tags, addresses of objects, wrappers."""
    if isinstance(value, Deferred):
        return value.tag, plain(value.arguments)
    if isinstance(value, Mapping):
        return {name: plain(item) for name, item in value.items() if name != "wrapper"}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return describe(value) if callable(value) and not isinstance(value, torch.nn.Module) else value


def import_name(name: str, allow: Sequence[str]) -> Any:
    """The object of a dotted name below one of the roots `allow`.

    "torch" stands for ``torch.nn``, ``torch.optim``, ``torch.utils.data``, dtypes and tensor constructors, "flambeau"
    for its rooms of parts; any other root or dotted prefix stands for itself. Names with a leading underscore, and
    objects that a module has only imported from elsewhere, are refused.

    Raises:
        ConfigError: the name is not allowed, or there is no such object.
    """
    check_name(name, allow)
    parts = name.split(".")
    for split in range(len(parts) - 1, 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:split]))
        except ModuleNotFoundError as error:
            if error.name and not ".".join(parts[:split]).startswith(error.name):
                raise ConfigError(f"{name} needs the package {error.name}, which is not installed") from None
            continue
        for part in parts[split:]:
            if not hasattr(found, part):
                raise ConfigError(f"there is no {name}")
            found = _checked(getattr(found, part), name, allow)
        return found
    raise ConfigError(f"there is no {name}; is the package {parts[0]} installed?")


def check_name(name: Any, allow: Sequence[str]) -> None:
    """Raise ConfigError unless `name` is a dotted name below one of the roots `allow`; nothing is imported."""
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z]\w*(\.[A-Za-z]\w*)+", name):
        raise ConfigError(f"expected a public dotted name such as torch.nn.Linear, got {name!r}")
    if not _allowed(name, allow):
        raise ConfigError(f"{name} may not be imported; allowed are {', '.join(allow)} (see load_config, allow=...)")


def _allowed(name: str, allow: Sequence[str]) -> bool:
    if name.startswith(FILES) and FILES not in allow:
        return False
    prefixes = [prefix for root in allow for prefix in ROOTS.get(root, (root,))]
    if any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes):
        return True
    root, _, rest = name.partition(".")
    return root == "torch" in allow and (rest in TORCH_VALUES or isinstance(getattr(torch, rest, None), torch.dtype))


def _checked(value: Any, name: str, allow: Sequence[str]) -> Any:
    """`value`, unless it is a module, class or function of a package that may not be imported from."""
    if isinstance(value, ModuleType):
        home: str | None = value.__name__
    elif isinstance(value, type) or callable(value) and hasattr(value, "__qualname__"):
        home = getattr(value, "__module__", None)
    elif callable(value) and not isinstance(value, nn.Module):
        home = type(value).__module__  # a functools.partial, say
    else:
        return value
    if name.removeprefix("torch.") in TORCH_VALUES:
        return value
    roots = {prefix.partition(".")[0] for root in allow for prefix in ROOTS.get(root, (root,))}
    if home is not None and home != "builtins":
        root = home.partition(".")[0]
        if root not in roots or (root in ROOTS and not _allowed(home, allow)):
            raise ConfigError(f"{name} belongs to {home}, which may not be imported")
    if home == "builtins" and isinstance(getattr(value, "__self__", None), ModuleType):
        raise ConfigError(f"{name} is a builtin function, which may not be imported")
    return value


def _attribute(target: Any, name: Any, allow: Sequence[str]) -> Any:
    if not isinstance(name, str) or name.startswith("_") or not name.isidentifier():
        raise ConfigError(f"expected the name of a public attribute, got {name!r}")
    kind = target if isinstance(target, type) else type(target)
    if not isinstance(target, (*PLAIN, ModuleType)) and kind not in PLAIN:
        # Objects that parts hand out, arrays and storages among them, have methods that write files.
        _checked(kind, f"{name} of {kind.__name__}", allow)
    return _checked(getattr(target, name), name, allow)


def _keyed(arguments: Any) -> str:
    """The dotted name of ``{key: ..., package: ...}``."""
    package = arguments.get("package")
    return f"{package}.{arguments['key']}" if package else arguments["key"]


def _call(function: Any, init: Any) -> Any:
    init = init or {}
    unknown = set(init) - {"args", "kwargs"}
    if unknown:
        raise ConfigError(f"init takes args and kwargs, got {sorted(unknown)}")
    return function(*(init.get("args") or ()), **(init.get("kwargs") or {}))


def _import_get(arguments: Any, allow: Sequence[str]) -> Any:
    return import_name(_keyed(arguments), allow)


def _import_call(arguments: Any, allow: Sequence[str]) -> Any:
    return _call(import_name(_keyed(arguments), allow), arguments.get("init"))


def _import_call_method(arguments: Any, allow: Sequence[str]) -> Any:
    names = [arguments["package"], arguments.get("class_name"), arguments.get("method_name")]
    owner, _, method = ".".join(name for name in names if name).rpartition(".")
    return _call(_attribute(import_name(owner, allow), method, allow), arguments.get("init"))


def _call_method(arguments: Any, allow: Sequence[str]) -> Any:
    target = arguments["obj"]
    method = _attribute(target, arguments["method_name"], allow)
    result = _call(method, {name: arguments[name] for name in ("args", "kwargs") if name in arguments})
    return target if arguments.get("returns_obj") else result


def _getattr(arguments: Any, allow: Sequence[str]) -> Any:
    return _attribute(arguments[0], arguments[1], allow)


def _setattr(arguments: Any, allow: Sequence[str]) -> Any:
    target, name, value = arguments
    if isinstance(target, (type, ModuleType)) or callable(getattr(type(target), name, None)):
        raise ConfigError(f"{name} of {type(target).__name__} may not be replaced, only attributes of objects")
    _attribute(target, name, allow) if hasattr(target, name) else _attribute(torch.nn.Module(), "training", allow)
    setattr(target, name, value)
    return target


def _access(arguments: Any, allow: Sequence[str]) -> Any:
    if isinstance(arguments, dict):
        return arguments["data"][arguments["index_or_key"]]
    return arguments[0][arguments[1]]


def _join(arguments: Any, allow: Sequence[str]) -> str:
    return _short("".join(str(item) for item in arguments))


def _pathjoin(arguments: Any, allow: Sequence[str]) -> str:
    return _short(os.path.expanduser(os.path.join(*[str(item) for item in arguments])))


def _expanduser(arguments: Any, allow: Sequence[str]) -> str:
    return os.path.expanduser(arguments)


def _abspath(arguments: Any, allow: Sequence[str]) -> str:
    return os.path.abspath(os.path.expanduser(arguments))


def _short(text: str) -> str:
    if len(text) > MAX_TEXT:
        raise ConfigError(f"the joined text has {len(text)} characters, more than {MAX_TEXT}")
    return text


TEXT_TAGS = {"!join": _join, "!pathjoin": _pathjoin, "!expanduser": _expanduser, "!abspath": _abspath}
TAGS = TEXT_TAGS | {
    "!import_get": _import_get,
    "!import_call": _import_call,
    "!import_call_method": _import_call_method,
    "!call_method": _call_method,
    "!getattr": _getattr,
    "!setattr": _setattr,
    "!access_by_index_or_key": _access,
}


def _named(arguments: Any) -> str:
    if isinstance(arguments, dict):
        return str(arguments.get("key") or arguments.get("package") or arguments.get("method_name"))
    return str(arguments)[:80]


class ConfigLoader(yaml.SafeLoader):
    """PyYAML's safe loader with the tags above; ``1e-3`` is a number, and a key that is given twice is an error."""

    file = "config"
    allow: tuple[str, ...] = ()

    def where(self, node: yaml.Node) -> str:
        return f"{self.file}:{node.start_mark.line + 1}"

    def construct_tag(self, node: yaml.Node) -> Any:
        if isinstance(node, yaml.MappingNode):
            arguments: Any = self.construct_mapping(node, deep=True)
        elif isinstance(node, yaml.SequenceNode):
            arguments = self.construct_sequence(node, deep=True)
        else:
            assert isinstance(node, yaml.ScalarNode)
            arguments = self.construct_scalar(node)
        try:
            _check_arguments(node.tag, arguments, self.allow)
            if node.tag in TEXT_TAGS and not any(isinstance(item, Deferred) for item in arguments):
                return TEXT_TAGS[node.tag](arguments, self.allow)
        except ConfigError as error:
            raise ConfigError(f"{self.where(node)}: {error}") from None
        return Deferred(node.tag, arguments, self.where(node), self.allow)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: dict[Any, int] = {}
        for key_node, _ in node.value:
            if isinstance(key_node, yaml.ScalarNode) and key_node.tag != "tag:yaml.org,2002:merge":
                if key_node.value in seen and key_node.start_mark.line != seen[key_node.value]:
                    raise ConfigError(f"{self.where(key_node)}: the key {key_node.value!r} is given twice")
                seen[key_node.value] = key_node.start_mark.line
        return super().construct_mapping(node, deep)


def _check_arguments(tag: str, arguments: Any, allow: Sequence[str]) -> None:
    """What can be told of a tag before anything is imported."""
    if tag in ("!expanduser", "!abspath"):
        if not isinstance(arguments, str):
            raise ConfigError(f"{tag} takes a text, got {type(arguments).__name__}")
    elif tag in ("!join", "!pathjoin", "!getattr", "!setattr"):
        length = {"!getattr": (2,), "!setattr": (3,)}.get(tag)
        if not isinstance(arguments, list) or not arguments or (length and len(arguments) not in length):
            raise ConfigError(f"{tag} takes a list{f' of {length[0]}' if length else ''}, got {arguments!r}")
    elif tag == "!access_by_index_or_key":
        if not (isinstance(arguments, list) and len(arguments) == 2) and set(arguments) != {"data", "index_or_key"}:
            raise ConfigError(f"{tag} takes data and index_or_key, got {arguments!r}")
    elif not isinstance(arguments, dict):
        raise ConfigError(f"{tag} takes a mapping, got {arguments!r}")
    elif tag in ("!import_get", "!import_call"):
        if "key" not in arguments:
            raise ConfigError(f"{tag} needs key, a dotted name")
        check_name(_keyed(arguments), allow)
    elif tag == "!import_call_method":
        names = [arguments.get("package"), arguments.get("class_name"), arguments.get("method_name")]
        check_name(".".join(str(name) for name in names if name), allow)
    elif "obj" not in arguments or "method_name" not in arguments:
        raise ConfigError(f"{tag} needs obj and method_name")


for _tag in TAGS:
    ConfigLoader.add_constructor(_tag, ConfigLoader.construct_tag)
_FLOAT = re.compile(r"[-+]?\d[\d_]*(\.\d*)?[eE][-+]?\d+$")
ConfigLoader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789"))
