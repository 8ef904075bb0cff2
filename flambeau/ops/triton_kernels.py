"""Where Triton kernels come from: the GPU's compiler, or Triton's interpreter when the tensors are on the CPU.

Kernels live in modules that hold nothing but kernels and their launchers (``flambeau/ops/*/gpu.py``, and generated
ones). A kernel never waits for another program, so the interpreter, which runs programs one after the other, gives the
same result. Kernels call builtins of ``triton.language`` and their own functions only: ``tl.sigmoid``, ``tl.zeros`` are
compiled functions too, which the interpreter cannot enter once Triton has been imported without it.
"""

import functools
import importlib
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

import torch


@functools.cache
def installed() -> bool:
    """Whether Triton can be imported."""
    return importlib.util.find_spec("triton") is not None


@functools.cache
def _mend_interpreter() -> None:
    """Let the interpreter count loops under NumPy 2.4, which no longer turns arrays of one element into integers."""
    from triton.runtime import interpreter

    original = interpreter._patch_lang_tensor

    def patched(tensor, scope):
        original(tensor, scope)  # records what to restore after the launch
        tensor.__index__ = lambda self: int(self.handle.data.item())

    interpreter._patch_lang_tensor = patched


@functools.cache
def interpreted(module: str, path: Path | None = None) -> ModuleType:
    """A private copy of a kernel module whose kernels run in Triton's interpreter, on CPU tensors, slowly."""
    spec = importlib.util.spec_from_file_location(module, path) if path else importlib.util.find_spec(module)
    if spec is None or spec.loader is None:
        raise ModuleNotFoundError(f"no module {module!r}")
    _mend_interpreter()
    copy = importlib.util.module_from_spec(spec)
    before = os.environ.get("TRITON_INTERPRET")
    os.environ["TRITON_INTERPRET"] = "1"  # read by triton.jit when it decorates
    try:
        sys.modules[f"{module}.interpreted"] = copy
        spec.loader.exec_module(copy)
    finally:
        if before is None:
            del os.environ["TRITON_INTERPRET"]
        else:
            os.environ["TRITON_INTERPRET"] = before
    return copy


@functools.cache
def generated(path: Path, device_type: str) -> ModuleType:
    """A kernel module this package wrote to the cache folder: compiled on a GPU, interpreted on the CPU."""
    name = f"flambeau.generated.{path.stem}"
    if device_type != "cuda":
        return interpreted(name, path)
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ModuleNotFoundError(f"no module at {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def kernels(module: str, device: torch.device) -> ModuleType:
    """The kernel module for tensors on ``device``: compiled on a GPU, interpreted on the CPU."""
    return importlib.import_module(module) if device.type == "cuda" else interpreted(module)
