"""Slices of computed tomography from DICOM files, as pictures to pre-train on."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float, Float32

from flambeau.extras import require
from flambeau.files import write_bytes

MAX_PIXELS = 100_000_000  # of one slice


def read_slice(path: str | Path) -> tuple[Float[np.ndarray, "height width"], str]:
    """A slice in Hounsfield units (``stored * RescaleSlope + RescaleIntercept``) and its patient.

    Raises:
        ModuleNotFoundError: pydicom is not installed; the message has the pip line.
        ValueError: not a DICOM file, without pixels, several frames or colours, or too large; the message names it.
    """
    pydicom = require("pydicom", "medical")
    try:
        file = pydicom.dcmread(path)
        size = int(file.Rows) * int(file.Columns)
        if size > MAX_PIXELS:
            raise ValueError(f"{size} pixels; at most {MAX_PIXELS} are read")
        if int(file.get("SamplesPerPixel", 1)) != 1 or int(file.get("NumberOfFrames", 1) or 1) != 1:
            raise ValueError("one grey frame is expected")
        stored = file.pixel_array.astype(np.float32)
    except FileNotFoundError:
        raise
    except Exception as error:  # pydicom and its decoders raise many kinds
        raise ValueError(f"{path} cannot be read as a DICOM slice: {error}") from None
    slope, intercept = float(file.get("RescaleSlope", 1)), float(file.get("RescaleIntercept", 0))
    return stored * slope + intercept, str(file.get("PatientID", "") or "unknown")


def to_unit_range(
    hounsfield: Float[np.ndarray, "height width"], window: tuple[float, float] | None = None
) -> Float32[np.ndarray, "height width"]:
    """[0, 1]: `window` is (centre, width) in Hounsfield units, for example (40, 80) for a brain; None takes the slice's
    own smallest and largest value, as Wolf et al. 2023 (arXiv 2308.06534, section 3) do. A constant slice is 0.

    Raises:
        ValueError: a width that is not positive.
    """
    if window is None:
        low, high = float(hounsfield.min()), float(hounsfield.max())
    else:
        if not window[1] > 0:
            raise ValueError(f"window must be (centre, positive width), got {window}")
        low, high = window[0] - window[1] / 2, window[0] + window[1] / 2
    if high == low:
        return np.zeros_like(hounsfield, np.float32)
    return ((hounsfield.clip(low, high) - low) / (high - low)).astype(np.float32)


def prepare_dicom(
    source: str | Path,
    target: str | Path,
    *,
    window: tuple[float, float] | None = None,
    format: Literal["png", "npz"] = "png",
) -> list[dict[str, str]]:
    """Every DICOM slice below `source` (LIDC-IDRI's folders, for example) as 8-bit grey PNG, or 32-bit float in NPZ.

    ``target`` gets ``slices.csv`` with the columns image, patient and source, and one file a slice, numbered in the
    order of the sources' paths. Slices that are there already are written again. Files that are no images, such as
    LIDC's XML annotations, are passed over by their names: what does not end in ``.dcm``, unless it has no ending.

    Returns:
        The rows of ``slices.csv``.

    Raises:
        ModuleNotFoundError: pydicom is not installed; the message has the pip line.
        NotADirectoryError: `source` is no folder.
        ValueError: no DICOM files, or what :func:`read_slice` and :func:`to_unit_range` raise.
    """
    source, target = Path(source), Path(target)
    if not source.is_dir():
        raise NotADirectoryError(f"{source} is not a folder")
    if format not in ("png", "npz"):
        raise ValueError(f"format must be 'png' or 'npz', got {format!r}")
    rows = []
    for number, path in enumerate(sorted(_dicom_files(source))):
        hounsfield, patient = read_slice(path)
        name = f"{number:07d}.{format}"
        write_bytes(target / name, _encoded(to_unit_range(hounsfield, window), format))
        rows.append({"image": name, "patient": patient, "source": str(path.relative_to(source))})
    if not rows:
        raise ValueError(f"{source} holds no DICOM files")
    write_bytes(target / "slices.csv", _csv(rows).encode())
    return rows


def _encoded(pixels: Float32[np.ndarray, "height width"], format: str) -> bytes:
    content = io.BytesIO()
    if format == "npz":
        np.savez_compressed(content, image=pixels)
    else:
        from PIL import Image

        Image.fromarray((pixels * 255).round().astype(np.uint8)).save(content, "PNG")
    return content.getvalue()


def _csv(rows: list[dict[str, str]]) -> str:
    import csv

    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _dicom_files(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        if path.is_file() and path.suffix.lower() in (".dcm", "") and not path.name.startswith("."):
            if path.suffix or path.name != "DICOMDIR":
                yield path
