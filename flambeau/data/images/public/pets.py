"""Oxford-IIIT Pets (Parkhi et al. 2012, https://www.robots.ox.ac.uk/~vgg/data/pets)."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch

from flambeau.data.images.public.listing import existing, inside, read_columns, whole_number
from flambeau.data.images.public.pictures import Pictures

LISTS = {"all": "list.txt", "trainval": "trainval.txt", "test": "test.txt"}


def pets(
    path: str | Path, part: Literal["all", "trainval", "test"] = "trainval", size: int | tuple[int, int] = 224
) -> Pictures:
    """7349 photographs of 37 breeds of cats and dogs: 3680 for training, 3669 for testing.

    Args:
        path: folder with ``images/`` and ``annotations/`` (``list.txt``, ``trainval.txt``, ``test.txt``: name, class
            from 1, species, breed within the species).
        part: which of the lists.
        size: height and width in pixels.

    Raises:
        FileNotFoundError: a list, or a picture of it, is missing.
        ValueError: another part, a line of another form, a class with two names, or one without any.
    """
    if part not in LISTS:
        raise ValueError(f"part must be one of {', '.join(LISTS)}, got {part!r}")
    root = Path(path)
    listed = root / "annotations" / LISTS[part]
    files, labels = [], []
    names: dict[int, str] = {}
    for name, number, _, _ in read_columns(listed, 4):
        label = whole_number(number, 1, 1000, f"{listed}: {name}") - 1
        breed = name.rpartition("_")[0]
        if names.setdefault(label, breed) != breed:
            raise ValueError(f"{listed}: class {number} is {names[label]} and, at {name}, {breed}")
        files.append(inside(root / "images", f"{name}.jpg"))
        labels.append(label)
    if sorted(names) != list(range(len(names))):
        raise ValueError(
            f"{listed}: classes must be 1 to {len(names)}, got {sorted(label + 1 for label in names)[-3:]}"
        )
    classes = [names[label] for label in range(len(names))]
    return Pictures(existing(files), torch.tensor(labels), classes, size)
