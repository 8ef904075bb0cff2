"""Small labelled parts of a set: stratified, nested, and with groups kept apart."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Int64
from torch import Tensor

from flambeau.data.seeding import derive_generator


def per_class(labels: Int64[Tensor, " n"], count: int, seed: int = 0) -> Int64[Tensor, " chosen"]:
    """Indices of `count` random cases of each class, in order. A larger `count` of one seed contains a smaller one.

    Raises:
        ValueError: `count` below 1, or a class with fewer cases.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    chosen = []
    for label in labels.unique().tolist():
        members = (labels == label).nonzero().flatten()
        if len(members) < count:
            raise ValueError(f"class {label} has {len(members)} cases, {count} are wanted")
        order = torch.randperm(len(members), generator=derive_generator(seed, "subset", label))
        chosen.append(members[order[:count]])
    return torch.cat(chosen).sort().values


def nested_fractions(
    labels: Int64[Tensor, " n"],
    fractions: Sequence[float],
    seed: int = 0,
    *,
    groups: Int64[Tensor, " n"] | None = None,
) -> list[Int64[Tensor, " chosen"]]:
    """Indices of a stratified part for each fraction; the part of a smaller fraction lies within that of a larger one.

    Of each class ``round(fraction * cases)``, at least one. With `groups` (slices of one patient) whole groups are
    added, in a random order that is dealt class by class, until a class has its share, so that parts are a little
    larger than asked for and a group's cases are never divided.

    Raises:
        ValueError: a fraction outside (0, 1], or labels and groups of different lengths.
    """
    for fraction in fractions:
        if not 0 < fraction <= 1:
            raise ValueError(f"fractions must lie in (0, 1], got {fraction}")
    if groups is not None and groups.shape != labels.shape:
        raise ValueError(f"groups must have shape {list(labels.shape)}, got {list(groups.shape)}")
    units = torch.arange(len(labels)) if groups is None else groups
    order: dict[int, list[int]] = {}
    for label in labels.unique().tolist():
        members = units[labels == label].unique()
        shuffled = members[torch.randperm(len(members), generator=derive_generator(seed, "fractions", label))]
        order[label] = shuffled.tolist()
    parts = []
    for fraction in fractions:
        taken = torch.zeros(len(labels), dtype=torch.bool)
        for label, members in order.items():
            of_class = labels == label
            wanted = max(1, round(fraction * int(of_class.sum())))
            # Each class takes its own first units, whatever the others took: that keeps the parts nested.
            have = 0
            for unit in members:
                if have >= wanted:
                    break
                inside = units == unit
                have += int((inside & of_class).sum())
                taken |= inside
        parts.append(taken.nonzero().flatten())
    return parts


def check_disjoint_groups(**groups: Int64[Tensor, " n"]) -> None:
    """Raises ValueError when two of the named parts share a group (a patient in training and in test)."""
    names = list(groups)
    for position, first in enumerate(names):
        for second in names[position + 1 :]:
            shared = sorted(set(groups[first].tolist()) & set(groups[second].tolist()))
            if shared:
                raise ValueError(f"{first} and {second} share {len(shared)} groups, for example {shared[:5]}")
