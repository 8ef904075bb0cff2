"""The machine and the code that a run was made with."""

from __future__ import annotations

import os
import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import flambeau


def environment(device: str = "cpu") -> dict[str, Any]:
    """Versions, processor, instruction set, threads and accelerator, as plain JSON values."""
    import torch

    return {
        "flambeau": flambeau.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": version("numpy"),
        "platform": platform.platform(),
        "cpu": cpu_model(),
        "isa": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": device,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def cpu_model() -> str:
    """The processor's name as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


@cache
def commit() -> str:
    """The git commit of the code with ``+changes`` if it was edited since, or the released version."""
    root = Path(flambeau.__file__).parents[1]
    if not (root / ".git").exists():
        return f"v{installed_version('flambeau') or flambeau.__version__}"
    git = ["git", "-C", str(root)]
    try:
        head = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, timeout=10)
        changed = subprocess.run(
            [*git, "status", "--porcelain", "--", "flambeau"], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return f"v{flambeau.__version__}"
    if head.returncode:
        return f"v{flambeau.__version__}"
    return head.stdout.strip() + ("+changes" if changed.stdout.strip() else "")


def installed_version(package: str) -> str | None:
    """The installed version of `package`, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
