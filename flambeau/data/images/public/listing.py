"""Lines of the text files that come with image sets."""

from __future__ import annotations

from pathlib import Path

MAX_BYTES = 16 << 20  # the longest published list, CUB's parts aside, has less than 1 MB


def read_columns(path: Path, columns: int) -> list[list[str]]:
    """Rows of `columns` words; empty lines and comments (#) are passed over.

    Raises:
        FileNotFoundError: no such file.
        ValueError: more than 16 MB, no UTF-8, no row, or a row of another number of words; the message has the line.
    """
    rows = [line.split() for line in read_lines(path)]
    kept = []
    for number, words in enumerate(rows, start=1):
        if not words or words[0].startswith("#"):
            continue
        if len(words) != columns:
            raise ValueError(
                f"{path}, line {number}: expected {columns} words, got {len(words)}: {' '.join(words)[:80]}"
            )
        kept.append(words)
    if not kept:
        raise ValueError(f"{path} has no rows")
    return kept


def read_lines(path: Path) -> list[str]:
    """All lines, without their ends; errors as in :func:`read_columns`."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing")
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{path} has {path.stat().st_size} bytes; at most {MAX_BYTES} are read")
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8: {error}") from None


def whole_number(text: str, low: int, high: int, where: str) -> int:
    """`text` as an integer in [low, high]. Raises ValueError beginning with `where`."""
    if not (text.isascii() and text.isdigit() and low <= int(text[:12]) <= high):
        raise ValueError(f"{where}: expected a whole number from {low} to {high}, got {text[:20]!r}")
    return int(text)


def inside(folder: Path, name: str) -> Path:
    """The file `name` of `folder`. Raises ValueError for a name that leads out of it."""
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise ValueError(f"{name!r} leads out of {folder}")
    return folder / name


def existing(files: list[Path]) -> tuple[Path, ...]:
    """`files`. Raises FileNotFoundError for the first that is missing."""
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f"{file} is listed, but missing")
    return tuple(files)
