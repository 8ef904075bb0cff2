"""``flambeau doctor``: what of flambeau works on this machine, what is missing, and how to get it."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from dataclasses import dataclass
from importlib.util import find_spec

from flambeau.experiment.environment import cpu_model, installed_version

EXTRAS = {
    "series": ("CSV and Parquet series, embedded series", ("pandas", "pyarrow", "statsmodels", "pmdarima")),
    "tabular": ("CSV and Parquet tables of any size", ("pandas", "pyarrow")),
    "geo": ("GeoTIFFs, vector files and STAC catalogues", ("rasterio", "shapely", "pyproj", "geopandas", "pystac")),
    "medical": ("DICOM files", ("pydicom",)),
    "hf": ("models from the Hugging Face hub or a local folder", ("transformers", "tokenizers")),
    "search": ("trials on a Ray cluster", ("ray",)),
    "serve": ("the board", ("starlette", "uvicorn")),
    "onnx": ("export to ONNX", ("onnx", "onnxruntime", "onnxscript")),
    "docs": ("building the documentation", ("mkdocs", "mkdocstrings")),
    "dev": ("the tests and linters", ("pytest", "ruff", "mypy")),
}


@dataclass(frozen=True)
class Check:
    """One line of the doctor's report. `fix` says how to get what is missing; None where nothing is."""

    name: str
    works: bool
    found: str
    fix: str | None = None


def checks() -> list[Check]:
    """Look at the machine: interpreter, torch, processor, compiler, accelerator, browser and optional extras."""
    import torch

    found = [
        Check("python", sys.version_info >= (3, 11), platform.python_version(), "install Python 3.11 or newer"),
        Check("torch", True, torch.__version__),
        Check("processor", True, f"{cpu_model()}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}"),
        _compiler(),
        _gpu(torch),
        _browser(),
    ]
    for extra, (purpose, packages) in EXTRAS.items():
        missing = [package for package in packages if find_spec(package) is None]
        versions = ", ".join(
            f"{package} {installed_version(package) or ''}".strip() for package in packages if package not in missing
        )
        found.append(
            Check(
                f"extra {extra}",
                not missing,
                f"{purpose}: {versions or 'none'}",
                f"pip install 'flambeau[{extra}]' (missing: {', '.join(missing)})",
            )
        )
    return found


def _compiler() -> Check:
    from flambeau.ops.build import BuildError, instruction_set

    try:
        return Check("C++ compiler", True, f"builds kernels for {instruction_set()}")
    except BuildError as error:
        return Check("C++ compiler", False, f"ops use their PyTorch reference: {error}", "apt-get install g++")


def _gpu(torch) -> Check:
    if torch.cuda.is_available():
        return Check("GPU", find_spec("triton") is not None, torch.cuda.get_device_name(), "pip install triton")
    return Check(
        "GPU", False, "none: claims that need one are shown as not measured", "a CUDA device and a CUDA build of torch"
    )


def _browser() -> Check:
    path = shutil.which("chromium") or shutil.which("google-chrome")
    return Check(
        "browser", path is not None, path or "none found (only the board's tests need one)", "apt-get install chromium"
    )
