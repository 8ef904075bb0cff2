"""Text: files and corpora as tokens, tokenizers, masked tokens, near-duplicates."""

from flambeau.data.text.masked_language import MaskedLanguage, MaskedPairs, mask_tokens
from flambeau.data.text.plain import ByteTokenizer, pydoc_text, pydoc_topics, text_file, token_windows

__all__ = [
    "ByteTokenizer",
    "MaskedLanguage",
    "MaskedPairs",
    "mask_tokens",
    "pydoc_text",
    "pydoc_topics",
    "text_file",
    "token_windows",
]
