"""Long texts as tokens in three parts: enwik8, WikiText-103, PG-19, or any file."""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

MAX_BYTES = 16 << 30  # of all files of a corpus together; PG-19 has 11 GiB
END = "<eos>"


@dataclass(frozen=True)
class Corpus:
    """train, validation, test: one long sequence each, uint8 (bytes) or int32 (words). vocab: size of the vocabulary.
    unit: "byte" or "word". test_words: words of the test part, ends of lines of WikiText included, by which published
    word perplexities divide the likelihood."""

    name: str
    train: Int[Tensor, " tokens"]
    validation: Int[Tensor, " tokens"]
    test: Int[Tensor, " tokens"]
    vocab: int
    unit: str
    test_words: int


def corpus(path: str | Path) -> Corpus:
    """The corpus at a path: a folder of WikiText (``wiki.train.tokens``) or of PG-19 (``train/*.txt``), or one
    file of bytes such as enwik8.

    Raises:
        ValueError: a folder of neither layout, a file that is empty or too large; the message names it.
        OSError: no such path, or it cannot be read.
    """
    path = Path(path)
    if not path.is_dir():
        return byte_file(path)
    if (path / "wiki.train.tokens").exists():
        return wikitext(path)
    if (path / "train").is_dir():
        return text_folders(path)
    raise ValueError(f"{path} has neither wiki.train.tokens (WikiText) nor train/*.txt (PG-19)")


def byte_file(path: str | Path) -> Corpus:
    """The bytes of one file in the parts of `byte_corpus`; of enwik8's 10^8 bytes these are the customary 90, 5 and 5
    million (mattmahoney.net/dc/textdata).

    Raises:
        ValueError: fewer than 100 bytes, or too many.
    """
    path = Path(path)
    _check_size(path, path.stat().st_size)
    return byte_corpus(path.stem, np.fromfile(path, dtype=np.uint8))


def byte_corpus(name: str, content: np.ndarray) -> Corpus:
    """Bytes in three parts: the first 90 % train, 5 % validation, the last 5 % test. Raises ValueError below 100."""
    tokens = torch.from_numpy(content)
    if len(tokens) < 100:
        raise ValueError(f"{name} has {len(tokens)} bytes; at least 100 are needed for three parts")
    held_out = len(tokens) // 20
    train, validation, test = tokens.split([len(tokens) - 2 * held_out, held_out, held_out])
    return Corpus(name, train, validation, test, 256, "byte", len(bytes(test.numpy()).split()))


def wikitext(folder: str | Path) -> Corpus:
    """``wiki.{train,valid,test}.tokens``: words separated by blanks, each line ended by ``<eos>``, as WikiText-103 is
    published (Merity et al. 2016, arXiv 1609.07843). The vocabulary is that of the training part and ``<unk>``.

    Raises:
        ValueError: a part is empty or too large, or not UTF-8.
    """
    folder, numbers = Path(folder), {"<unk>": 0, END: 1}
    paths = [folder / f"wiki.{part}.tokens" for part in ("train", "valid", "test")]
    _check_size(folder, sum(path.stat().st_size for path in paths))
    train, validation, test = (_words(path, numbers, grow=number == 0) for number, path in enumerate(paths))
    return Corpus(folder.name, train, validation, test, len(numbers), "word", len(test))


def text_folders(folder: str | Path) -> Corpus:
    """``train/``, ``validation/`` and ``test/`` with a text file a book, as PG-19 is published (Rae et al. 2020,
    arXiv 1911.05507): as bytes, the books of a part one after the other in the order of their names.

    Raises:
        ValueError: a part without text, or too many bytes.
    """
    folder = Path(folder)
    books = {part: sorted((folder / part).glob("*.txt")) for part in ("train", "validation", "test")}
    _check_size(folder, sum(path.stat().st_size for paths in books.values() for path in paths))
    parts = {}
    for part, paths in books.items():
        content = [np.fromfile(path, dtype=np.uint8) for path in paths]
        if not sum(map(len, content)):
            raise ValueError(f"{folder / part} holds no .txt file with any text")
        parts[part] = torch.from_numpy(np.concatenate(content))
    words = sum(len(path.read_bytes().split()) for path in books["test"])
    return Corpus(folder.name, parts["train"], parts["validation"], parts["test"], 256, "byte", words)


def _words(path: Path, numbers: dict[str, int], grow: bool) -> Int[Tensor, " tokens"]:
    tokens = array("i")
    with path.open(encoding="utf-8") as lines:
        try:
            for line in lines:
                words = line.split()
                if grow:
                    for word in words:
                        numbers.setdefault(word, len(numbers))
                tokens.extend(numbers.get(word, 0) for word in words)
                tokens.append(numbers[END])
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not UTF-8: {error}") from None
    if not tokens:
        raise ValueError(f"{path} is empty")
    return torch.from_numpy(np.frombuffer(tokens, dtype=np.int32).copy())


def _check_size(path: Path, size: int) -> None:
    if size > MAX_BYTES:
        raise ValueError(f"{path} has {size} bytes; at most {MAX_BYTES} are read")
