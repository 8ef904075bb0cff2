"""Reading a distillation config: YAML with tags, from which nothing is imported or called until it is used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from flambeau.training.distillation.tags import MAX_DEPTH, MAX_NODES, ConfigError, ConfigLoader

MAX_BYTES = 1 << 20


def load_config(path: str | Path, allow: Sequence[str] = ("flambeau", "torch")) -> dict[str, Any]:
    """The config in a YAML file, as plain dicts and lists; tags become values that are built when they are used.

    Reading twice gives equal configs, and no function of this package changes one. Tags: ``!join``, ``!pathjoin``,
    ``!expanduser``, ``!abspath``, ``!import_get``, ``!import_call``, ``!import_call_method``, ``!call_method``,
    ``!getattr``, ``!setattr`` and ``!access_by_index_or_key``, with the arguments that torchdistill's have
    (Matsubara 2021, arXiv 2011.12913).

    Args:
        path: at most 1 MiB.
        allow: packages, or dotted prefixes, that tags and keys may import from. "torch" means its parts (``torch.nn``,
            ``torch.optim``, ``torch.utils.data``, dtypes), not functions that load files or run code. A package that
            the config lists under ``dependencies`` has to be here too: a file cannot allow itself anything.

    Raises:
        ConfigError: not YAML of this kind, too large, or an import that is not allowed; with file and line.
        OSError: the file cannot be read.
    """
    path = Path(path)
    if path.stat().st_size > MAX_BYTES:
        raise ConfigError(f"{path}: {path.stat().st_size} bytes, more than the {MAX_BYTES} that are read")
    return parse_config(path.read_text(encoding="utf-8"), allow, str(path))


def parse_config(text: str, allow: Sequence[str] = ("flambeau", "torch"), file: str = "config") -> dict[str, Any]:
    """As :func:`load_config`, of a text. file: its name in errors."""
    if len(text) > MAX_BYTES:
        raise ConfigError(f"{file}: {len(text)} characters, more than the {MAX_BYTES} that are read")
    if isinstance(allow, str):
        raise TypeError(f"allow must be a sequence of package names, got {allow!r}")
    loader = ConfigLoader(text)
    loader.file, loader.allow = file, tuple(allow)
    try:
        node = loader.get_single_node()
        _check_size(node, file)
        config = loader.construct_document(node)
    except ConfigError:
        raise
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        raise ConfigError(f"{file}{line}: {error.problem or error.context}") from None
    except (yaml.YAMLError, ValueError, TypeError) as error:
        raise ConfigError(f"{file}: {error}") from None
    except RecursionError:
        raise ConfigError(f"{file}: nested more than {MAX_DEPTH} deep") from None
    finally:
        loader.dispose()
    if not isinstance(config, dict):
        raise ConfigError(f"{file}: expected a mapping with models and train, got {type(config).__name__}")
    for name in dependencies(config):
        if name not in allow:
            raise ConfigError(f"{file}: dependencies name {name!r}, which is not allowed; allow=(..., {name!r}) would")
    return config


def dependencies(config: Mapping[str, Any]) -> list[str]:
    """The packages that a config lists as its own."""
    entries = config.get("dependencies") or []
    entries = [entries] if isinstance(entries, (str, dict)) else entries
    return [str(entry["name"] if isinstance(entry, dict) else entry) for entry in entries]


def _check_size(node: yaml.Node | None, file: str) -> None:
    """Refuse what grows by its aliases: a node counts as often as it is referred to."""
    sizes: dict[int, int] = {}

    def size(node: yaml.Node, depth: int, above: frozenset[int]) -> int:
        if depth > MAX_DEPTH or id(node) in above:
            raise ConfigError(
                f"{file}:{node.start_mark.line + 1}: nested more than {MAX_DEPTH} deep, or an alias inside itself"
            )
        if id(node) not in sizes:
            children = node.value if isinstance(node.value, list) else []
            inside = above | {id(node)}
            pairs = [item for child in children for item in (child if isinstance(child, tuple) else (child,))]
            sizes[id(node)] = 1 + sum(size(child, depth + 1, inside) for child in pairs)
            if sizes[id(node)] > MAX_NODES:
                raise ConfigError(f"{file}:{node.start_mark.line + 1}: more than {MAX_NODES} values, aliases counted")
        return sizes[id(node)]

    if node is not None:
        size(node, 0, frozenset())
