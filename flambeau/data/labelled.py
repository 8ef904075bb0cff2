"""Labelled cases for a classifier, from a set in memory or from a user's file, split into training and test."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from flambeau.data.images.files import image_folder, mnist_idx
from flambeau.data.images.image_set import ImageSet
from flambeau.data.tables import Table, read_table


@dataclass(frozen=True)
class LabelledCases:
    """Inputs and labels to train on and to test with; classes are named by ``classes[label]``.

    Rows of a table are standardised by ``mean`` and ``scale`` of its training rows, with names in ``columns``.
    """

    train_x: Float[Tensor, n * shape]
    train_y: Int64[Tensor, " n"]
    test_x: Float[Tensor, t * shape]
    test_y: Int64[Tensor, " t"]
    classes: list[str]
    columns: list[str] | None = None
    mean: Tensor | None = None
    scale: Tensor | None = None

    @property
    def are_images(self) -> bool:
        return self.train_x.ndim == 4


def labelled_cases(
    data: ImageSet | Table | str | Path, *, target: str = "", size: int = 32, test_share: float = 0.25, seed: int = 0
) -> LabelledCases:
    """Split labelled ``data`` by class.

    Categories of a table become one column each, and a missing number the training mean.

    Args:
        data: an ``ImageSet`` with labels, a ``Table``, or the path of a folder of class folders, of an MNIST-style
            folder or a file in it (with its own test part, if that is there), or of a CSV file.
        target: the label's column, for a CSV file.
        size: height and width in pixels to which the pictures of a folder are brought.
        test_share: held out for testing.
        seed: which split.

    Raises:
        FileNotFoundError: no such path.
        ValueError: a file of another kind, no labels, a CSV file without ``target`` or with a number as target, one
            class only.
    """
    if isinstance(data, (str, Path)):
        path = Path(data)
        if not path.exists():
            raise FileNotFoundError(f"data: {path} does not exist")
        if path.suffix.lower() in (".csv", ".tsv", ".parquet"):
            if not target:
                raise ValueError(f"target: expected the label's column of {path}")
            data = read_table(path, target)
        elif path.is_dir() and not any(path.glob("train-images*")):
            data = image_folder(path, size=size)
        elif "-ubyte" in path.name or path.is_dir():
            folder = path if path.is_dir() else path.parent
            data = mnist_idx(folder)
            if any(folder.glob("t10k-images*")):
                return _images(data, mnist_idx(folder, train=False))
        else:
            raise ValueError(f"data: got {path}, expected a folder of class folders, MNIST files or a CSV file")
    if isinstance(data, ImageSet):
        return _images(*data.split((1 - test_share, test_share), seed))
    return _rows(*data.split((1 - test_share, test_share), seed))


def _images(train: ImageSet, test: ImageSet) -> LabelledCases:
    if train.labels is None or test.labels is None:
        raise ValueError("data: got images without labels, expected one folder for each class")
    count = int(train.labels.max()) + 1
    classes = train.classes if train.classes is not None else [str(label) for label in range(count)]
    if len(classes) < 2:
        raise ValueError(f"data: got one class, {classes}, expected at least two")
    return LabelledCases(train.images, train.labels, test.images, test.labels, list(classes))


def _rows(train: Table, test: Table) -> LabelledCases:
    if train.classes is None or len(train.classes) < 2:
        raise ValueError("target: got numbers or one class, expected at least two classes")
    columns, train_x = _one_hot(train)
    mean = train_x.nanmean(0)
    spread = (train_x - mean).square().nanmean(0).sqrt()
    scale = torch.where(spread > 1e-6 * mean.abs().clamp(min=1), spread, torch.ones_like(spread))
    train_x, test_x = (((x - mean) / scale).nan_to_num(nan=0.0) for x in (train_x, _one_hot(test)[1]))
    return LabelledCases(
        train_x, train.target, test_x, test.target, train.classes, columns, mean.nan_to_num(nan=0.0), scale
    )


def _one_hot(table: Table) -> tuple[list[str], Float[Tensor, "rows columns"]]:
    names, columns = [], []
    for name, kind, values in zip(table.names, table.kinds, table.features.T):
        if kind == "numeric":
            names.append(name)
            columns.append(values)
        else:
            for code, category in enumerate(table.categories[name]):
                names.append(f"{name}={category}")
                columns.append((values == code).float())
    return names, torch.stack(columns, 1)
