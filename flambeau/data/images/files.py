"""Images from the user's own files: folders of pictures, and the IDX files of MNIST and its relatives."""

from __future__ import annotations

import gzip
import math
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from flambeau.data.images.image_set import ImageSet

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm")
MAX_PIXELS = 100_000_000  # of one file: a small file can decode to any size (a decompression bomb)
MAX_VALUES = 2**31  # of a whole set: 8 GiB as float32


def image_folder(path: str | Path, size: int | tuple[int, int] | None = None, gray: bool = False) -> ImageSet:
    """The pictures in a folder. With sub-folders each is a class, named as the folder; without, there are no labels.

    Files of other kinds (by suffix) and hidden ones are passed over. Photographs are turned as their EXIF tag says,
    transparency is put on black, 16-bit grey is kept exact.

    Args:
        path: the folder.
        size: height and width in pixels: each picture is resized to cover it, then cropped to the centre. None keeps
            the files' size, which must be the same for all.
        gray: one channel instead of three.

    Raises:
        ValueError: no pictures, a class without any, different sizes, more than 100 million pixels in a file, or a
            file that cannot be decoded; the message names the file.
        NotADirectoryError: `path` is no folder.
    """
    root = Path(path)
    files, labels, classes = list_pictures(root)
    images: list[Tensor] = []
    values = 0
    for file in files:
        image = read_image(file, size, gray)
        if images and image.shape != images[0].shape:
            height, width = image.shape[1:]
            first = f"{files[0]} {images[0].shape[2]}x{images[0].shape[1]}"
            raise ValueError(f"{file} has {width}x{height} pixels and {first}; pass size to bring them to one size")
        values += image.numel()
        if values > MAX_VALUES:
            raise ValueError(f"the pictures in {root} exceed {MAX_VALUES} values at {file}; pass a smaller size")
        images.append(image)
    return ImageSet(torch.stack(images), None if labels is None else torch.tensor(labels), classes)


def list_pictures(root: Path) -> tuple[list[Path], list[int] | None, list[str] | None]:
    """Files, labels and class names of :func:`image_folder`, without reading a picture; its errors apply."""
    if not root.is_dir():
        raise NotADirectoryError(f"{root} is not a folder")
    folders = sorted(entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    files = [(file, label) for label, folder in enumerate(folders) for file in _pictures(folder)]
    loose = _pictures(root)
    if folders and loose:
        raise ValueError(f"{loose[0]} lies beside the class folders {folders[0].name}, ...; move it into one of them")
    if not folders:
        files = [(file, 0) for file in loose]
    if not files:
        raise ValueError(f"{root} holds no pictures ({', '.join(SUFFIXES)})")
    filled = {label for _, label in files}
    empty = [folder.name for label, folder in enumerate(folders) if label not in filled]
    if empty:
        raise ValueError(f"the class folder {root / empty[0]} holds no pictures")
    names = [file for file, _ in files]
    if not folders:
        return names, None, None
    return names, [label for _, label in files], [folder.name for folder in folders]


def read_image(
    path: str | Path, size: int | tuple[int, int] | None = None, gray: bool = False
) -> Float[Tensor, "channels height width"]:
    """One picture as float32 in [0, 1]; arguments and errors as in :func:`image_folder`."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    if size is not None:
        height, width = (size, size) if isinstance(size, int) else size
        if min(height, width) < 1:
            raise ValueError(f"size must be at least 1 pixel, got {size}")
    try:
        with Image.open(path, formats=FORMATS) as opened:
            if opened.width * opened.height > MAX_PIXELS:
                raise ValueError(f"{path} has {opened.width}x{opened.height} pixels; at most {MAX_PIXELS} are read")
            image = ImageOps.exif_transpose(opened)
            if image.mode.startswith("I"):
                image = Image.fromarray(np.asarray(image, np.float32) / 65535)
            else:
                image = image.convert(
                    "RGBA" if "transparency" in image.info or image.mode in ("LA", "PA") else image.mode
                )
                if image.mode == "RGBA":
                    image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image)
                image = image.convert("L" if gray else "RGB")
    except FileNotFoundError:
        raise
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, EOFError) as error:
        raise ValueError(f"{path} cannot be read as a picture: {error}") from None
    if size is not None:
        image = ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(np.array(image, np.float32))
    if image.mode != "F":
        pixels.div_(255)
    if pixels.ndim == 3:
        return pixels.permute(2, 0, 1).contiguous()
    return pixels.clamp_(0, 1).expand(1 if gray else 3, -1, -1).contiguous()


def mnist_idx(path: str | Path, train: bool = True) -> ImageSet:
    """MNIST or a relative (Fashion, KMNIST, EMNIST) from its IDX files, plain or gzipped.

    Args:
        path: the folder with ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte`` and ``t10k-...`` (also ``.gz``),
            or one ``...-images-...`` file, whose labels lie beside it.
        train: of a folder, the training images; otherwise the test images.

    Raises:
        FileNotFoundError: a file is missing; the message names it.
        ValueError: a wrong magic number, a size that does not fit the header, or images and labels that do not match.
    """
    root, part = Path(path), "train" if train else "t10k"
    if root.is_file():
        part, found, _ = root.name.partition("-images")
        if not found:
            raise ValueError(f"{root.name} is not named as an IDX file of images, for example train-images-idx3-ubyte")
        root = root.parent
    images = read_idx(_idx_file(root, f"{part}-images", 3))
    labels = read_idx(_idx_file(root, f"{part}-labels", 1))
    if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
        raise ValueError(
            f"{root}: images [N, H, W] and labels [N] expected, got {list(images.shape)} and {list(labels.shape)}"
        )
    classes = [str(label) for label in range(int(labels.max()) + 1)] if len(labels) else []
    scaled = torch.from_numpy(images).float().div_(255).unsqueeze(1)
    return ImageSet(scaled, torch.from_numpy(labels.astype(np.int64)), classes)


def read_idx(path: str | Path) -> np.ndarray:
    """A uint8 array from an IDX file, plain or gzipped (LeCun's format: two zero bytes, type 8, rank, sizes, data).

    No more is decompressed than the header announces, at most 2^31 bytes.

    Raises:
        ValueError: not an IDX file of unsigned bytes, or truncated, or longer than its header says.
    """
    path = Path(path)
    with path.open("rb") as raw:
        gzipped = raw.read(2) == b"\x1f\x8b"
    opened: Any = gzip.open(path, "rb") if gzipped else path.open("rb")
    with opened as file:
        try:
            return _read_idx(file, path)
        except (EOFError, gzip.BadGzipFile, OSError) as error:
            raise ValueError(f"{path} cannot be read: {error}") from None


def _read_idx(file: IO[bytes], path: Path) -> np.ndarray:
    magic = file.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] != 8 or not 1 <= magic[3] <= 4:
        raise ValueError(f"{path} is no IDX file of unsigned bytes: it begins with {magic.hex(' ') or 'nothing'}")
    header = file.read(4 * magic[3])
    shape = tuple(int.from_bytes(header[i : i + 4], "big") for i in range(0, len(header), 4))
    if len(header) < 4 * magic[3]:
        raise ValueError(f"{path} ends within its header")
    size = math.prod(shape)
    if size > MAX_VALUES:
        raise ValueError(f"{path} announces {size} bytes ({shape}); at most {MAX_VALUES} are read")
    content = file.read(size + 1)
    if len(content) != size:
        more = "more" if len(content) > size else len(content)
        raise ValueError(f"{path} announces {size} bytes ({shape}) and holds {more}")
    return np.frombuffer(bytearray(content), np.uint8).reshape(shape)


def _idx_file(root: Path, stem: str, rank: int) -> Path:
    names = [f"{stem}{dot}idx{rank}-ubyte{suffix}" for dot in "-." for suffix in ("", ".gz")]
    for name in names:
        if (root / name).is_file():
            return root / name
    raise FileNotFoundError(f"{root / names[0]} is missing (also looked for {', '.join(names[1:])})")


def _pictures(folder: Path) -> list[Path]:
    files = (entry for entry in folder.iterdir() if entry.is_file() and not entry.name.startswith("."))
    return sorted(file for file in files if file.suffix.lower() in SUFFIXES)
