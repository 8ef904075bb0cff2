"""Caltech-UCSD Birds-200-2011 (Wah et al. 2011, https://www.vision.caltech.edu/datasets/cub_200_2011)."""

from __future__ import annotations

from pathlib import Path

import torch

from flambeau.data.images.public.listing import existing, inside, read_columns, whole_number
from flambeau.data.images.public.pictures import Pictures

MOST = 1_000_000


def cub(path: str | Path, train: bool = True, size: int | tuple[int, int] = 224) -> Pictures:
    """11788 photographs of 200 kinds of birds: 5994 for training, 5794 for testing.

    Args:
        path: folder with ``images/``, ``images.txt``, ``image_class_labels.txt``, ``train_test_split.txt`` and
            ``classes.txt`` (each line a number from 1 and its value).
        train: the images marked 1 in the split instead of those marked 0.
        size: height and width in pixels.

    Raises:
        FileNotFoundError: a list, or a picture of it, is missing.
        ValueError: a line of another form, a number twice or without its counterpart, or an unknown class.
    """
    root = Path(path)
    names, classes = _table(root / "images.txt"), _table(root / "classes.txt")
    labels, marks = _table(root / "image_class_labels.txt"), _table(root / "train_test_split.txt")
    if sorted(classes) != list(range(1, len(classes) + 1)):
        raise ValueError(f"{root / 'classes.txt'}: classes must be numbered from 1 to {len(classes)}")
    for table, file in ((labels, "image_class_labels.txt"), (marks, "train_test_split.txt")):
        if table.keys() != names.keys():
            number = min(table.keys() ^ names.keys())
            raise ValueError(f"{root / file} and images.txt do not have the same images: {number} is in one of them")
    wanted = "1" if train else "0"
    files, chosen = [], []
    for number, name in names.items():
        where = f"{root / 'train_test_split.txt'}: {number}"
        if str(whole_number(marks[number], 0, 1, where)) != wanted:
            continue
        where = f"{root / 'image_class_labels.txt'}: {number}"
        chosen.append(whole_number(labels[number], 1, len(classes), where) - 1)
        files.append(inside(root / "images", name))
    return Pictures(existing(files), torch.tensor(chosen), [classes[number] for number in sorted(classes)], size)


def _table(path: Path) -> dict[int, str]:
    """Lines of a number and a word."""
    table: dict[int, str] = {}
    for number, value in read_columns(path, 2):
        key = whole_number(number, 1, MOST, str(path))
        if key in table:
            raise ValueError(f"{path}: {key} is there twice")
        table[key] = value
    return table
