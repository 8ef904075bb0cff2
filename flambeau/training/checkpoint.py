"""Checkpoints on disk: a folder that appears whole or not at all, safetensors and JSON, verified before it is read.

A checkpoint holds one nested state (dicts, lists, tuples, numbers, strings, tensors). Its tensors go to one
``NAME.safetensors`` a top-level entry, the rest to ``state.json``, and ``manifest.json`` lists the size and SHA-256
of each file. Everything is written and synced under a temporary name and then renamed, so a kill, a power cut or a
full disk leaves the previous checkpoint as the newest. Nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

FORMAT = 1
MAX_JSON_BYTES = 256 * 2**20
_STEP = re.compile(r"step-(\d{1,15})")


class CheckpointError(ValueError):
    """A checkpoint that is damaged, or that does not belong to this training."""


def save(root: Path, step: int, state: dict[str, Any], keep: int) -> Path:
    """Write `state` as ``root/step-NNN`` atomically, then remove all but the newest `keep` checkpoints.

    Raises:
        OSError: the disk is full or not writable; earlier checkpoints are untouched.
        TypeError: the state holds something that is neither plain data nor a tensor.
    """
    root.mkdir(parents=True, exist_ok=True)
    _sync(root.parent)
    target = root / f"step-{step:08d}"
    temporary = root / f".writing-{target.name}-{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        _write_files(temporary, state)
        _sync(temporary)
        if target.exists():  # only a damaged one can be in the way: training goes on from the newest whole one
            _remove(target)
        os.rename(temporary, target)
        _sync(root)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)  # gives the space back
        raise
    for old in _steps(root)[keep:]:
        _remove(old)
    return target


def newest(root: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Whole checkpoints under `root` with their states, newest first; damaged ones are passed over with a warning."""
    for path in _steps(root):
        try:
            state = load(path)
        except CheckpointError as error:
            warnings.warn(f"{error}; trying the checkpoint before it", stacklevel=3)
            continue
        yield path, state


def exist(root: Path) -> bool:
    """Whether `root` holds a checkpoint, whole or not."""
    return bool(_steps(root))


def load(path: Path) -> dict[str, Any]:
    """The state of one checkpoint folder, every file checked against the manifest. Tensors arrive on the CPU.

    Raises:
        CheckpointError: a file is missing, altered, oversized or malformed; the message names it.
    """
    manifest = _read_json(path / "manifest.json")
    files = manifest.get("files") if isinstance(manifest, dict) else None
    if not isinstance(files, dict) or manifest.get("format") != FORMAT:
        raise CheckpointError(f"{path / 'manifest.json'} is no checkpoint manifest of format {FORMAT}")
    for name, entry in files.items():
        if not re.fullmatch(r"\w+\.(safetensors|json)", name) or not isinstance(entry, dict):
            raise CheckpointError(f"{path / 'manifest.json'} lists an unexpected file {name!r}")
        file = path / name
        if not file.is_file() or file.stat().st_size != entry.get("bytes") or _sha256(file) != entry.get("sha256"):
            raise CheckpointError(f"{file} is missing or damaged")
    if "state.json" not in files:
        raise CheckpointError(f"{path} has no state.json")
    skeleton = _read_json(path / "state.json")
    tensors: dict[str, Tensor] = {}
    for name in files:
        if name.endswith(".safetensors"):
            try:
                loaded = load_file(path / name)
            except (SafetensorError, OSError, ValueError) as error:
                raise CheckpointError(f"{path / name} cannot be read: {error}") from None
            tensors.update({f"{name.removesuffix('.safetensors')}/{key}": value for key, value in loaded.items()})
    try:
        return {name: _unflatten(value, tensors) for name, value in skeleton.items()}
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path / 'state.json'} is malformed: {error!r}") from None


def save_weights(path: Path, weights: dict[str, Any]) -> None:
    """Write the tensors of `weights` as one safetensors file, whole or not at all."""
    temporary = path.with_name(f".writing-{path.name}-{os.getpid()}")
    tensors = {name: value for name, value in weights.items() if isinstance(value, Tensor)}
    try:
        _save_tensors(_separate(tensors, 0), temporary)
        _sync(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def clean(root: Path) -> None:
    """Remove what an interrupted save left behind."""
    for leftover in (*root.glob(".writing-*"), *root.glob(".removing-*")):
        shutil.rmtree(leftover, ignore_errors=True)


def _remove(path: Path) -> None:
    """Delete a checkpoint so that a kill in between leaves none that looks whole by its name."""
    doomed = path.with_name(f".removing-{path.name}-{os.getpid()}")
    os.rename(path, doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def _steps(root: Path) -> list[Path]:
    found = [(int(match[1]), path) for path in root.glob("step-*") if (match := _STEP.fullmatch(path.name))]
    return [path for _, path in sorted(found, reverse=True)]


def _write_files(folder: Path, state: dict[str, Any]) -> None:
    skeleton = {}
    for name, value in state.items():
        tensors: dict[str, Tensor] = {}
        skeleton[name] = _flatten(value, tensors, name)
        if tensors:
            _save_tensors(_separate(tensors, len(name) + 1), folder / f"{name}.safetensors")
    (folder / "state.json").write_text(json.dumps(skeleton))
    files = {}
    for file in sorted(folder.iterdir()):
        _sync(file)
        files[file.name] = {"bytes": file.stat().st_size, "sha256": _sha256(file)}
    manifest = folder / "manifest.json"
    manifest.write_text(json.dumps({"format": FORMAT, "files": files}, indent=1))
    _sync(manifest)


def _save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """``save_file`` with the ``OSError`` of any other write: safetensors gives the system's error number as text."""
    try:
        save_file(tensors, path)
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error


def _flatten(value: Any, tensors: dict[str, Tensor], path: str) -> Any:
    """`value` as JSON; tensors are put into `tensors` under their path and referred to by it."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Tensor):
        if path in tensors:
            raise TypeError(f"two tensors of the state have the name {path}")
        tensors[path] = value
        return {"tensor": path}
    if isinstance(value, dict):
        if all(isinstance(key, str) for key in value):
            return {"dict": {key: _flatten(item, tensors, f"{path}/{key}") for key, item in value.items()}}
        pairs = value.items()
        return {"items": [[_flatten(key, {}, path), _flatten(item, tensors, f"{path}/{key}")] for key, item in pairs]}
    if isinstance(value, (list, tuple)):
        items = [_flatten(item, tensors, f"{path}/{position}") for position, item in enumerate(value)]
        return {"tuple": items} if isinstance(value, tuple) else items
    raise TypeError(f"{path} is a {type(value).__name__}; a checkpoint holds plain data and tensors only")


def _unflatten(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_unflatten(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: _unflatten(item, tensors) for key, item in content.items()}
    if kind == "items":
        return {_unflatten(key, tensors): _unflatten(item, tensors) for key, item in content}
    if kind == "tuple":
        return tuple(_unflatten(item, tensors) for item in content)
    raise ValueError(f"unknown kind {kind!r}")


def _separate(tensors: dict[str, Tensor], prefix: int) -> dict[str, Tensor]:
    """Contiguous tensors that share no memory, as safetensors wants them, named without the file's own name."""
    seen: set[int] = set()
    separate = {}
    for path, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        storage = tensor.untyped_storage()
        if storage.data_ptr() in seen or storage.nbytes() != tensor.nbytes:
            tensor = tensor.clone()
        seen.add(storage.data_ptr())
        separate[path[prefix:]] = tensor
    return separate


def _read_json(path: Path) -> Any:
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise CheckpointError(f"{path} exceeds {MAX_JSON_BYTES >> 20} MiB")
        return json.loads(path.read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
