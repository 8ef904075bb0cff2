"""Text: an embedded corpus, text files, bytes as tokens, and windows of tokens for language models."""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

MAX_TEXT_BYTES = 2**30


def pydoc_text() -> str:
    """Python's language reference as ``help()`` shows it: about 465 kB of English that differ a little by version."""
    return "\n".join(pydoc_topics().values())


def pydoc_topics() -> dict[str, str]:
    """The same text by topic (79 topics in Python 3.11), in alphabetical order."""
    from pydoc_data.topics import topics

    return dict(sorted(topics.items()))


def text_file(path: str | Path) -> str:
    """The content of a UTF-8 file; line ends become ``\\n`` and a byte order mark is dropped.

    Raises:
        ValueError: larger than 1 GiB, empty, or not UTF-8; the message names line and column.
        OSError: no such file, or it cannot be read.
    """
    path = Path(path)
    size = path.stat().st_size
    if size > MAX_TEXT_BYTES:
        raise ValueError(f"{path} has {size} bytes; at most {MAX_TEXT_BYTES} are read")
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = content[: error.start]
        line, column = before.count(b"\n") + 1, len(before.rpartition(b"\n")[2].decode(errors="replace")) + 1
        raise ValueError(
            f"{path}, line {line}, column {column}: byte 0x{content[error.start]:02x} is not UTF-8"
        ) from None
    if not text:
        raise ValueError(f"{path} is empty")
    return text.replace("\r\n", "\n").replace("\r", "\n")


class ByteTokenizer:
    """Text as its UTF-8 bytes: 256 tokens, nothing to train, nothing out of vocabulary."""

    vocab_size = 256

    def encode(self, text: str) -> Int64[Tensor, " tokens"]:
        """One token a byte."""
        return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8).long() if text else torch.empty(0).long()

    def decode(self, tokens: Int64[Tensor, " tokens"]) -> str:
        """The text of `tokens`; bytes that are no whole character become U+FFFD.

        Raises:
            ValueError: a token outside [0, 256).
        """
        values = tokens.flatten().tolist()
        if values and not (min(values) >= 0 and max(values) < 256):
            raise ValueError(f"tokens must lie in [0, 256), got [{min(values)}, {max(values)}]")
        return bytes(values).decode(errors="replace")

    def word_begins(self, tokens: Int64[Tensor, " tokens"]) -> Bool[Tensor, " tokens"]:
        """Where words begin: at bytes behind white space that are none themselves."""
        space = (tokens == 32) | ((tokens >= 9) & (tokens <= 13))
        return ~space & torch.cat([space.new_ones(1), space[:-1]])


def token_windows(
    tokens: Int64[Tensor, " tokens"], length: int, stride: int | None = None
) -> Int64[Tensor, "windows length_plus_one"]:
    """Windows for next-token prediction: ``window[:, :-1]`` is the input, ``window[:, 1:]`` the target.

    Args:
        tokens: one long sequence.
        length: tokens of context.
        stride: tokens between the beginnings of windows; None is `length`, so that each token is a target once.

    Returns:
        A view of `tokens` (no copy), also for ``stride=1``. An incomplete last window is left out.

    Raises:
        ValueError: fewer than ``length + 1`` tokens, or `length` or `stride` below 1.
    """
    stride = length if stride is None else stride
    if length < 1 or stride < 1:
        raise ValueError(f"length and stride must be at least 1, got {length} and {stride}")
    if tokens.ndim != 1:
        raise ValueError(f"tokens must have shape [tokens], got {list(tokens.shape)}")
    if len(tokens) < length + 1:
        raise ValueError(f"a window needs {length + 1} tokens, got {len(tokens)}")
    return tokens.unfold(0, length + 1, stride)
