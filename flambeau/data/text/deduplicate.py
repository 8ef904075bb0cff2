"""Near-duplicates in a collection of texts, and texts that contain pieces of a test set."""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

_PRIME = (1 << 61) - 1  # Mersenne: larger than any 32-bit hash, so that a*x + b mod p permutes them


def duplicates(
    texts: Sequence[str], *, threshold: float = 0.7, shingle: int = 5, bands: int = 20, rows: int = 5, seed: int = 0
) -> list[list[int]]:
    """Groups of texts that are nearly the same: pairs with a Jaccard similarity of shingles above `threshold`.

    Candidates share a band of their MinHash signatures (locality-sensitive hashing; Broder 1997): with similarity s a
    pair is found with probability 1 - (1 - s^rows)^bands, 98 % at 0.7 with the defaults. Each candidate pair is then
    compared exactly; groups are what such pairs connect. Megatron-LM's corpus was cleaned so at 0.7 (Shoeybi et al.
    2019, arXiv 1909.08053, section 4.1); keep the first of each group.

    Args:
        shingle: characters of a shingle of the text in lower case with white space made one space.
        bands, rows: the signature has ``bands * rows`` hashes.

    Returns:
        Groups of at least two indices, ascending, in the order of their first.

    Raises:
        ValueError: an argument out of range.
    """
    if not 0 < threshold < 1:
        raise ValueError(f"threshold must lie in (0, 1), got {threshold}")
    for name, value in (("shingle", shingle), ("bands", bands), ("rows", rows)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    shingles = [_shingles(text, shingle) for text in texts]
    random = np.random.default_rng(seed)
    factors = random.integers(1, 2**31, bands * rows).astype(np.uint64)
    offsets = random.integers(0, 2**31, bands * rows).astype(np.uint64)
    parent = list(range(len(texts)))
    buckets: dict[tuple[int, bytes], list[int]] = defaultdict(list)
    for index, hashes in enumerate(shingles):
        signature = _signature(hashes, factors, offsets)
        for band in range(bands):
            bucket = buckets[band, signature[band * rows : (band + 1) * rows].tobytes()]
            for other in bucket:
                if _root(parent, other) != _root(parent, index) and _jaccard(shingles[other], hashes) > threshold:
                    first, second = sorted((_root(parent, other), _root(parent, index)))
                    parent[second] = first
            bucket.append(index)
    groups: dict[int, list[int]] = defaultdict(list)
    for index in range(len(texts)):
        groups[_root(parent, index)].append(index)
    return [group for group in groups.values() if len(group) > 1]


def without_duplicates(texts: Sequence[str], **arguments: float) -> list[str]:
    """`texts` with only the first of each group of `duplicates`, whose arguments these are."""
    dropped = {index for group in duplicates(texts, **arguments) for index in group[1:]}  # type: ignore[arg-type]
    return [text for index, text in enumerate(texts) if index not in dropped]


def without_overlap(texts: Iterable[str], held_out: Iterable[str], *, words: int = 8) -> list[str]:
    """`texts` that share no run of `words` words with any text of `held_out`, letter case and punctuation aside.

    A training corpus is kept free of a test set so (Shoeybi et al. 2019, section 4.1; 8-grams). Raises ValueError for
    `words` below 1.
    """
    if words < 1:
        raise ValueError(f"words must be at least 1, got {words}")
    forbidden = {gram for text in held_out for gram in _grams(text, words)}
    return [text for text in texts if not any(gram in forbidden for gram in _grams(text, words))]


def _grams(text: str, words: int) -> Iterable[tuple[str, ...]]:
    found = re.findall(r"\w+", text.lower())
    return (tuple(found[i : i + words]) for i in range(len(found) - words + 1))


def _shingles(text: str, size: int) -> np.ndarray:
    """Distinct 32-bit hashes of the text's shingles; equal in every process."""
    text = " ".join(text.lower().split())
    pieces = {text[i : i + size] for i in range(max(1, len(text) - size + 1))}
    hashes = [int.from_bytes(hashlib.blake2b(piece.encode(), digest_size=4).digest(), "little") for piece in pieces]
    return np.unique(np.array(hashes, dtype=np.uint64))


def _signature(hashes: np.ndarray, factors: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    # 32-bit hashes times 31-bit factors stay below 2^63, so that uint64 holds the product and the sum.
    products = hashes[None] * factors[:, None] + offsets[:, None]
    return (products % np.uint64(_PRIME)).min(1)


def _jaccard(a: np.ndarray, b: np.ndarray) -> float:
    shared = len(np.intersect1d(a, b, assume_unique=True))
    return shared / (len(a) + len(b) - shared)


def _root(parent: list[int], index: int) -> int:
    while parent[index] != index:
        parent[index] = parent[parent[index]]
        index = parent[index]
    return index
