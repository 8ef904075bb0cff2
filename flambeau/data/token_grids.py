"""Grids of discrete tokens: images and clips whose cells are classes, from memory or from files of codes."""

from __future__ import annotations

import io
import math
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from flambeau.data.images.image_set import digits
from flambeau.data.seeding import derive_seed
from flambeau.files import write_bytes

MAX_BYTES = 2**33


@dataclass(frozen=True)
class TokenGrids:
    """Token grids with optional labels.

    tokens: [n, *grid]. vocab: tokens lie in 0..vocab-1. classes: number of labels.
    Raises ValueError for shapes or values that do not fit.
    """

    tokens: Int64[Tensor, "n ..."]
    vocab: int
    labels: Int64[Tensor, " n"] | None = None
    classes: int = 0

    def __post_init__(self) -> None:
        if self.tokens.ndim < 2 or not len(self.tokens):
            raise ValueError(f"tokens must be [n, *grid] with n > 0, got {list(self.tokens.shape)}")
        for name, values, count in (("tokens", self.tokens, self.vocab), ("labels", self.labels, self.classes)):
            if values is not None and not 0 <= int(values.min()) <= int(values.max()) < count:
                raise ValueError(f"{name} must lie in 0..{count - 1}, got {int(values.min())}..{int(values.max())}")
        if self.labels is not None and self.labels.shape != self.tokens.shape[:1]:
            raise ValueError(f"labels must have shape [{len(self.tokens)}], got {list(self.labels.shape)}")

    @property
    def grid(self) -> tuple[int, ...]:
        return tuple(self.tokens.shape[1:])

    def __len__(self) -> int:
        return len(self.tokens)

    def split(self, test: int, seed: int = 0) -> tuple[TokenGrids, TokenGrids]:
        """A random training and test part, the latter of `test` grids."""
        if not 0 < test < len(self):
            raise ValueError(f"test must lie in 1..{len(self) - 1}, got {test}")
        rows = torch.from_numpy(np.random.default_rng(derive_seed(seed, "token grids")).permutation(len(self)))
        return self._rows(rows[test:]), self._rows(rows[:test])

    def _rows(self, rows: Tensor) -> TokenGrids:
        labels = None if self.labels is None else self.labels[rows]
        return TokenGrids(self.tokens[rows], self.vocab, labels, self.classes)


def digit_tokens() -> TokenGrids:
    """1797 handwritten digits as 8 x 8 grids of their 17 grey levels, ten classes (see `flambeau.data.digits`)."""
    images = digits()
    return TokenGrids((images.images[:, 0] * 16).round().long(), 17, images.labels, 10)


def moving_digits(clips: int = 1000, frames: int = 4, size: int = 12, levels: int = 5, seed: int = 0) -> TokenGrids:
    """Clips [frames, size, size] of a digit that moves straight and bounces off the walls, in grey levels; ten classes.

    Raises ValueError when the 8 x 8 digit does not fit.
    """
    if size < 8 or frames < 1 or clips < 1 or levels < 2:
        raise ValueError(
            f"size must be at least 8, frames and clips 1, levels 2; got {size}, {frames}, {clips}, {levels}"
        )
    source, random = digits(), np.random.default_rng(derive_seed(seed, "moving digits"))
    chosen = random.integers(len(source), size=clips)
    room, velocity = size - 8, random.choice([-2, -1, 1, 2], size=(clips, 2))
    start = random.integers(0, room + 1, size=(clips, 2))
    tokens = torch.zeros(clips, frames, size, size, dtype=torch.long)
    shades = (source.images[chosen, 0] * (levels - 1)).round().long()
    for frame in range(frames):
        # Reflection at both walls: the position on a line of twice the length, folded.
        unfolded = (start + frame * velocity) % max(2 * room, 1)
        top, left = np.minimum(unfolded, 2 * room - unfolded).T
        for clip in range(clips):
            y, x = int(top[clip]), int(left[clip])
            tokens[clip, frame, y : y + 8, x : x + 8] = shades[clip]
    assert source.labels is not None
    return TokenGrids(tokens, levels, source.labels[chosen], 10)


def read_codes(path: str | Path, vocab: int | None = None) -> TokenGrids:
    """Codes of a tokenizer from a file or a folder of them.

    ``*.npz`` holds ``codes`` [n, *grid] and, for a conditional model, ``labels`` [n]; ``*.tar`` is a WebDataset of
    ``KEY.npy`` (one grid [height, width], or [crops, height, width] of one image) with ``KEY.cls`` (its label as text).

    vocab: by default one more than the largest code.

    Raises:
        FileNotFoundError: nothing there, or no such file in the folder.
        ValueError: a file that is damaged, holds objects or other arrays, or grids that differ.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    files = [path] if path.is_file() else sorted([*path.glob("*.npz"), *path.glob("*.tar")])
    if not files:
        raise FileNotFoundError(f"{path} holds no .npz and no .tar file")
    if sum(file.stat().st_size for file in files) > MAX_BYTES:
        raise ValueError(f"{path} exceeds {MAX_BYTES >> 30} GiB")
    codes, labels = [], []
    for file in files:
        try:
            for grids, label in _tar(file) if file.suffix == ".tar" else _npz(file):
                codes.append(grids)
                labels.append(label)
        except (OSError, EOFError, KeyError, tarfile.TarError, zipfile.BadZipFile, UnicodeDecodeError) as error:
            raise ValueError(f"{file} cannot be read: {error}") from None
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from None
    shapes = {grids.shape[1:] for grids in codes}
    if len(shapes) != 1 or len({label is None for label in labels}) != 1:
        raise ValueError(f"{path}: grids {sorted(shapes)} or the presence of labels differ between samples")
    tokens = torch.from_numpy(np.concatenate(codes).astype(np.int64))
    if not tokens.numel() or int(tokens.min()) < 0:
        raise ValueError(f"{path}: codes must be at least 0 and not empty")
    vocab = int(tokens.max()) + 1 if vocab is None else vocab
    if labels[0] is None:
        return TokenGrids(tokens, vocab)
    classes = torch.from_numpy(np.concatenate([label for label in labels if label is not None]).astype(np.int64))
    return TokenGrids(tokens, vocab, classes, int(classes.max()) + 1)


def write_codes(path: str | Path, grids: TokenGrids) -> None:
    """Write an ``.npz`` that `read_codes` reads, whole or not at all."""
    content = io.BytesIO()
    arrays = {"codes": grids.tokens.numpy()} | ({} if grids.labels is None else {"labels": grids.labels.numpy()})
    np.savez_compressed(content, allow_pickle=False, **arrays)
    write_bytes(Path(path), content.getvalue())


def extract_codes(
    encode: Callable[[Tensor], Int64[Tensor, "batch ..."]],
    images: Float[Tensor, "n channels height width"],
    crop: int,
    batch_size: int = 64,
) -> Int64[Tensor, "n 10 ..."]:
    """Codes of the ten crops of every image: four corners and the centre, and their mirror images.

    The augmentation that LlamaGen and NAR train class-conditional models on. encode: images to grids of codes.
    Raises ValueError when the crop does not fit.
    """
    height, width = images.shape[2:]
    if not 0 < crop <= min(height, width):
        raise ValueError(f"crop must lie in 1..{min(height, width)}, got {crop}")
    bottom, right = height - crop, width - crop
    corners = [(0, 0), (0, right), (bottom, 0), (bottom, right), (bottom // 2, right // 2)]
    crops = [images[..., y : y + crop, x : x + crop] for y, x in corners]
    ten = torch.stack([*crops, *(part.flip(-1) for part in crops)], 1).flatten(0, 1)
    codes = torch.cat([encode(part) for part in ten.split(batch_size)])
    return codes.unflatten(0, (len(images), 10))


def _npz(path: Path) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    with np.load(path, allow_pickle=False) as arrays:
        if "codes" not in arrays:
            raise ValueError(f"no array named codes, there are {sorted(arrays)}")
        codes = _integers(arrays["codes"])
        if codes.ndim < 2:
            raise ValueError(f"codes must be [n, *grid], got {list(codes.shape)}")
        labels = _integers(arrays["labels"]) if "labels" in arrays else None
        if labels is not None and labels.shape != codes.shape[:1]:
            raise ValueError(f"labels must have shape [{len(codes)}], got {list(labels.shape)}")
        yield codes, labels


def _tar(path: Path) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    samples: dict[str, dict[str, Any]] = {}
    with tarfile.open(path) as archive:
        for member in archive:
            key, _, kind = member.name.rpartition(".")
            if not member.isfile() or kind not in ("npy", "cls"):
                continue
            if member.size > MAX_BYTES:
                raise ValueError(f"{member.name} exceeds {MAX_BYTES >> 30} GiB")
            file = archive.extractfile(member)
            assert file is not None
            content = file.read()
            samples.setdefault(key, {})[kind] = (
                _integers(np.load(io.BytesIO(content), allow_pickle=False)) if kind == "npy" else int(content.decode())
            )
    for key, sample in samples.items():
        if "npy" not in sample:
            raise ValueError(f"{key}.npy is missing")
        # One image's grid, or a stack of its crops.
        grids = sample["npy"][None] if sample["npy"].ndim == 2 else sample["npy"]
        if grids.ndim != 3:
            raise ValueError(f"{key}.npy must be [height, width] or [crops, height, width], got {list(grids.shape)}")
        yield grids, np.full(len(grids), sample["cls"]) if "cls" in sample else None


def _integers(array: np.ndarray) -> np.ndarray:
    if array.dtype.kind not in "iu":
        raise ValueError(f"codes and labels must be whole numbers, got {array.dtype}")
    if math.prod(array.shape) > MAX_BYTES // 8:
        raise ValueError(f"an array of {list(array.shape)} is too large")
    return array
