"""How often a functional hash errs: merges different functions, or splits equal ones."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import NamedTuple

from flambeau.search.functional.key import hash_numbers


class Collisions(NamedTuple):
    """Errors of keys against the truth.

    keys, functions: how many different ones. merged: share of the functions that have a key in common with another
    function. split: share of the functions that have several keys.
    """

    keys: int
    functions: int
    merged: float
    split: float


def collisions(keys: Sequence[Hashable], truth: Sequence[Hashable]) -> Collisions:
    """Judge the keys of candidates by an oracle, which is slow but right: `truth` is equal for equal functions.

    Raises:
        ValueError: not as many keys as truths, or none.
    """
    if len(keys) != len(truth) or not keys:
        raise ValueError(f"truth: expected one for each of the {len(keys)} keys (at least 1), got {len(truth)}")
    functions_of, keys_of = defaultdict(set), defaultdict(set)
    for key, function in zip(keys, truth):
        functions_of[key].add(function)
        keys_of[function].add(key)
    merged = sum(len(functions) for functions in functions_of.values() if len(functions) > 1)
    split = sum(len(found) > 1 for found in keys_of.values())
    return Collisions(len(functions_of), len(keys_of), merged / len(keys_of), split / len(keys_of))


def collision_study(
    numbers: Mapping[int, Sequence[Sequence[float]]], truth: Sequence[Hashable], mantissa_bits: Iterable[int]
) -> list[dict[str, float]]:
    """Collisions for each hash budget and number of bits, as rows of a table.

    Args:
        numbers: by budget (training steps, say), what a probe's `numbers` gave for each candidate.
        truth: the oracle's answer for each candidate.
    """
    rows = []
    for budget, values in numbers.items():
        for bits in mantissa_bits:
            found = collisions([hash_numbers(value, bits) for value in values], truth)
            rows.append({"budget": budget, "bits": bits, **found._asdict()})
    return rows
