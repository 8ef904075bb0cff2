"""Images named in a CSV file, with labels and patients."""

from __future__ import annotations

import csv
from pathlib import Path

import torch
from torch import Tensor

from flambeau.data.images.files import MAX_VALUES, read_image
from flambeau.data.images.image_set import ImageSet

MAX_ROWS = 5_000_000


def image_list(
    path: str | Path,
    *,
    root: str | Path | None = None,
    size: int | tuple[int, int] | None = None,
    gray: bool = False,
    labelled: bool = True,
) -> ImageSet:
    """The pictures of a CSV file with the columns ``image``, ``label`` and, where known, ``patient``.

    Patients become groups, which are never split apart. Labels may be words or numbers; classes are in alphabetical,
    or numerical, order. root: folder the paths start from; that of the CSV file if not given. A path that leads out of
    it is refused. size, gray: as of ``image_folder``. labelled: without, no labels are read or asked for.

    Raises:
        FileNotFoundError: the CSV file or a picture does not exist.
        ValueError: a missing column or value, a path out of `root`, different sizes, or a picture that cannot be read;
            the message names the file and the line.
    """
    path = Path(path)
    folder = (path.parent if root is None else Path(root)).resolve()
    images: list[Tensor] = []
    labels: list[str] = []
    patients: list[str] = []
    values = 0
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        columns = reader.fieldnames or []
        wanted = ["image", "label"] if labelled else ["image"]
        missing = [name for name in wanted if name not in columns]
        if missing:
            raise ValueError(f"{path} has no column {missing[0]!r}; it has {', '.join(columns) or 'none'}")
        for row in reader:
            where = f"{path} line {reader.line_num}"
            if reader.line_num > MAX_ROWS:
                raise ValueError(f"{where}: more than {MAX_ROWS} lines")
            for name in (*wanted, *(["patient"] if "patient" in columns else [])):
                if not (row[name] or "").strip():
                    raise ValueError(f"{where}: {name} is empty")
            picture = (folder / row["image"].strip()).resolve()
            if not picture.is_relative_to(folder):
                raise ValueError(f"{where}: {row['image']} lies outside of {folder}")
            if not picture.is_file():
                raise FileNotFoundError(f"{where}: {picture} does not exist")
            image = read_image(picture, size, gray)
            if images and image.shape != images[0].shape:
                got, first = (f"{shape[2]}x{shape[1]}" for shape in (image.shape, images[0].shape))
                raise ValueError(f"{where}: {got} pixels, the first has {first}; pass size to bring them to one size")
            values += image.numel()
            if values > MAX_VALUES:
                raise ValueError(f"{where}: the pictures exceed {MAX_VALUES} values; pass a smaller size")
            images.append(image)
            labels.append(row["label"].strip() if labelled else "")
            patients.append((row.get("patient") or "").strip())
    if not images:
        raise ValueError(f"{path} names no pictures")
    people = {name: number for number, name in enumerate(dict.fromkeys(patients))}
    groups = torch.tensor([people[name] for name in patients]) if "patient" in columns else None
    if not labelled:
        return ImageSet(torch.stack(images), groups=groups)
    classes = _in_order(set(labels))
    numbers = {name: number for number, name in enumerate(classes)}
    return ImageSet(torch.stack(images), torch.tensor([numbers[name] for name in labels]), classes, groups)


def _in_order(names: set[str]) -> list[str]:
    try:
        return sorted(names, key=float)
    except ValueError:
        return sorted(names)
