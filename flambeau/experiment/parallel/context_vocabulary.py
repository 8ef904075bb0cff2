"""Text as one stream of tokens: bytes, or the pieces of a tokenizer file."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from flambeau.data.text.plain import ByteTokenizer


def encode(text: str, tokenizer: str | None) -> tuple[Tensor, int, dict[str, int]]:
    """Tokens, size of the vocabulary, and the tokens that begin a row and mask (none for bytes, which have no such).

    tokenizer: a ``tokenizer.json`` of the tokenizers library with [CLS] and [MASK] (or <s> and <mask>).
    Raises ValueError for a file without them, and OSError if there is none.
    """
    if tokenizer is None:
        return ByteTokenizer().encode(text), ByteTokenizer.vocab_size, {}
    try:
        from tokenizers import Tokenizer
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError('tokenizer= needs the tokenizers library: pip install "flambeau[hf]"') from error
    if not Path(tokenizer).is_file():
        raise FileNotFoundError(f"tokenizer: no file {tokenizer}")
    pieces = Tokenizer.from_file(tokenizer)
    special = {}
    for name, spellings in (("first_token", ("[CLS]", "<s>")), ("mask_token", ("[MASK]", "<mask>"))):
        found = [number for number in map(pieces.token_to_id, spellings) if number is not None]
        if not found:
            raise ValueError(f"tokenizer {tokenizer} has none of {', '.join(spellings)}")
        special[name] = found[0]
    stream = torch.tensor(pieces.encode(text, add_special_tokens=False).ids)
    return stream, pieces.get_vocab_size(), special
