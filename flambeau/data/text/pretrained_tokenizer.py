"""Tokenizers of transformers behind the interface of `ByteTokenizer`."""

from __future__ import annotations

from functools import cached_property

import torch
from jaxtyping import Bool, Int64
from torch import Tensor


class PretrainedTokenizer:
    """A tokenizer of the Hugging Face hub or of a folder, without its special tokens.

    source: a name such as ``"gpt2"``, or a folder. No code of the source is run.
    Raises ModuleNotFoundError without transformers, OSError if there is no such tokenizer.
    """

    def __init__(self, source: str):
        try:
            from transformers import AutoTokenizer
        except ModuleNotFoundError:
            raise ModuleNotFoundError("hf: tokenizers need transformers: pip install 'flambeau[hf]'") from None
        self._tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        self.vocab_size = len(self._tokenizer)

    def encode(self, text: str) -> Int64[Tensor, " tokens"]:
        """Token ids of a text of any length."""
        return torch.tensor(self._tokenizer.encode(text, add_special_tokens=False, verbose=False), dtype=torch.int64)

    def decode(self, tokens: Int64[Tensor, " tokens"]) -> str:
        """The text of `tokens`."""
        return self._tokenizer.decode(tokens.flatten().tolist())

    def word_begins(self, tokens: Int64[Tensor, " tokens"]) -> Bool[Tensor, " tokens"]:
        """Where words begin: at tokens that start with a space, or (WordPiece) that do not continue a word."""
        return self._begins[tokens]

    @cached_property
    def _begins(self) -> Tensor:
        names = self._tokenizer.convert_ids_to_tokens(range(self.vocab_size))
        if any(name.startswith("##") for name in names):
            return torch.tensor([not name.startswith("##") for name in names])
        return torch.tensor([name.startswith(("\u0120", "\u010a", "\u2581")) for name in names])
