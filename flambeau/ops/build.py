"""Compile C++ to a shared object behind a plain C ABI in seconds, once a machine, and load it with ctypes.

No torch headers are involved: kernels get raw pointers and sizes. The object is cached by the hash of source, headers,
flags and compiler, in ``$FLAMBEAU_CACHE``, else ``$XDG_CACHE_HOME/flambeau``, else ``~/.cache/flambeau``. It is written
to a private name and renamed, so processes that build at the same time do not disturb each other.
"""

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

INCLUDE = Path(__file__).parent / "include"
# -O3 makes no kernel here faster than -O2 with loops unrolled and takes twice as long to compile.
FLAGS = ("-O2", "-funroll-loops", "-std=c++17", "-fPIC", "-shared", "-fno-math-errno", "-fno-trapping-math")
LINK = ("-pthread",)

# The same source is compiled for one of these; ordered from what every processor runs to the richest.
ISA_FLAGS = {
    "generic": (),
    "avx2": ("-mavx2", "-mfma"),
    "avx512": ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma", "-mprefer-vector-width=512"),
    "avx512_bf16": (
        "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512bf16", "-mfma", "-mprefer-vector-width=512",
    ),
}  # fmt: skip


class BuildError(RuntimeError):
    """No compiler was found, or it refused the source; the message holds its output."""


def cache_folder() -> Path:
    """Where compiled kernels and measured tilings are kept."""
    if "FLAMBEAU_CACHE" in os.environ:
        return Path(os.environ["FLAMBEAU_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "flambeau"


@functools.cache
def _compiler(name: str | None) -> tuple[str, str]:
    """Path of the C++ compiler (``$CXX``, else g++, clang++, c++) and the version line that enters the hash."""
    path = next((found for c in ([name] if name else ["g++", "clang++", "c++"]) if (found := shutil.which(c))), None)
    if path is None:
        raise BuildError(f"no C++ compiler found (looked for {name or 'g++, clang++, c++'}); install g++ or set CXX")
    return path, subprocess.run([path, "--version"], capture_output=True, text=True).stdout


def compile_library(source: Path, flags: Sequence[str] = (), prelude: str = "") -> Path:
    """Compile one C++ file to a shared object and return its path in the cache (nothing is done when it is there).

    Args:
        prelude: C++ text that comes before the source, such as a generated type that it is compiled for.

    Raises:
        BuildError: there is no compiler, or it failed; the command and its output are in the message.
    """
    compiler, version = _compiler(os.environ.get("CXX"))
    arguments = [*FLAGS, *flags, f"-I{INCLUDE}"]
    digest = hashlib.sha256()
    for part in (source, *sorted(source.parent.glob("*.h")), *sorted(INCLUDE.glob("*.h"))):
        digest.update(hashlib.sha256(part.read_bytes()).digest())
    digest.update("\0".join([*FLAGS, *flags, *LINK, version, *([prelude] if prelude else [])]).encode())
    folder = cache_folder() / "build"
    target = folder / f"{source.parent.name}-{source.stem}-{digest.hexdigest()[:20]}.so"
    if target.exists():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        built = Path(scratch) / target.name
        if prelude:
            before = Path(scratch) / "prelude.h"
            before.write_text(prelude)
            arguments += ["-include", str(before)]
        command = [compiler, *arguments, str(source), "-o", str(built), *LINK]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode != 0:
            raise BuildError(f"the compiler refused {source.name}\n$ {' '.join(command)}\n{result.stderr[-6000:]}")
        os.replace(built, target)
    return target


@functools.cache
def load(source: Path, isa: str, prelude: str = "") -> ctypes.CDLL:
    """The library compiled from ``prelude`` and ``source`` for one instruction set of ``ISA_FLAGS``."""
    return ctypes.CDLL(str(compile_library(source, ISA_FLAGS[isa], prelude)))


@functools.cache
def _machine() -> tuple[str, int]:
    """Best instruction set of this processor, asked with cpuid, and bytes of one core's L2 cache (0 if unknown)."""
    probe = load(Path(__file__).parent / "isa.cpp", "generic")
    probe.isa_l2_bytes.restype = ctypes.c_long
    return list(ISA_FLAGS)[probe.isa_level()], max(0, probe.isa_l2_bytes())


def l2_bytes() -> int:
    """Bytes of one core's L2 cache; 0 when the system does not say."""
    return _machine()[1]


def instruction_set() -> str:
    """The instruction set kernels run with: the processor's best, or a lower one forced by ``$FLAMBEAU_ISA``.

    Raises:
        ValueError: ``FLAMBEAU_ISA`` names an unknown set or one this processor lacks.
    """
    best = _machine()[0]
    forced = os.environ.get("FLAMBEAU_ISA")
    if not forced:
        return best
    names = list(ISA_FLAGS)
    if forced not in names[: names.index(best) + 1]:
        raise ValueError(f"FLAMBEAU_ISA is {forced!r}; this processor runs {', '.join(names[: names.index(best) + 1])}")
    return forced


@functools.cache
def _unavailable(op: str, attempt: Callable[[], object]) -> BuildError | None:
    try:
        attempt()
    except BuildError as error:
        warnings.warn(f"{op}: compiled kernel unavailable, using the PyTorch reference. {error}", stacklevel=4)
        return error
    return None


def available(op: str, attempt: Callable[[], object]) -> bool:
    """Whether ``attempt()`` (usually a ``load``) works; the first failure is warned about, later ones are silent."""
    return _unavailable(op, attempt) is None
