"""Mutators: operations that change the points of individuals."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from flambeau.search.algorithms.operations import Context, Individual, Individuals, Operation
from flambeau.symbolic import DNA, Spec
from flambeau.symbolic.spec import Choices, Custom, Point


class Site(NamedTuple):
    """A node of a DNA that can be drawn again: where it is, what decides it, as which of several choices."""

    path: tuple[int, ...]
    point: Point
    position: int | None


class Uniform(Operation):
    """Picks one node of the DNA uniformly and draws it, with all below it, again (PyGlove's uniform mutator).

    The draw may give the old value. One of several distinct choices gets a candidate that is not among them (and stays
    if there is none); sorted choices are sorted again. A custom decision is changed by its own mutation.

    Args:
        where: which decision points may change; by default all.

    Raises:
        ValueError: (when called) nothing in the DNA may change.
    """

    def __init__(self, where: Callable[[Point], bool] | None = None) -> None:
        self.where = where

    def __call__(self, individuals: Individuals, context: Context) -> Individuals:
        return [Individual(self.mutate(i.dna, context.spec, context.rng, context.prior)) for i in individuals]

    def mutate(self, dna: DNA, spec: Spec, rng: random.Random, prior: Any = None) -> DNA:
        """One changed copy of `dna`."""
        sites = [site for site in all_sites(spec, dna) if self.where is None or self.where(site.point)]
        if not sites:
            raise ValueError("dna: no decision in it may change")
        path, point, position = sites[rng.randrange(len(sites))]
        if position is not None:
            parent = at_path(dna, path[:-1])
            return with_node(dna, path[:-1], _redraw_one(point, parent, position, rng, prior))  # type: ignore[arg-type]
        if isinstance(point, Custom):
            return with_node(dna, path, point.mutate(at_path(dna, path), rng))
        return with_node(dna, path, point.random(rng, prior))


def all_sites(spec: Spec, dna: DNA) -> Iterator[Site]:
    """Every node of `dna` that can be drawn again, parents first; several choices are one node and one node each."""
    return _sites(spec.points, dna.children, ())


def _sites(points: Sequence[Point], children: Sequence[DNA], path: tuple[int, ...]) -> Iterator[Site]:
    for i, (point, child) in enumerate(zip(points, children)):
        yield Site((*path, i), point, None)
        if not isinstance(point, Choices):
            continue
        if point.k == 1:
            yield from _sites(point.branch(child.value).points, child.children, (*path, i))  # type: ignore[arg-type]
            continue
        for j, pick in enumerate(child.children):
            yield Site((*path, i, j), point, j)
            yield from _sites(point.branch(pick.value, j).points, pick.children, (*path, i, j))  # type: ignore[arg-type]


def at_path(dna: DNA, path: Sequence[int]) -> DNA:
    """The node below `dna` at these child positions."""
    for position in path:
        dna = dna.children[position]
    return dna


def with_node(dna: DNA, path: Sequence[int], node: DNA) -> DNA:
    """`dna` with the node at `path` replaced."""
    if not path:
        return node
    return dna.replace(path[0], with_node(dna.children[path[0]], path[1:], node))


def _redraw_one(point: Choices, choices: DNA, position: int, rng: random.Random, prior: Any) -> DNA:
    taken = {pick.value for pick in choices.children} if point.distinct else set()
    weights = None if prior is None else prior.of_choice(point)
    free = [i for i in range(point.n) if i not in taken and (weights is None or weights[i] > 0)]
    if not free:
        return choices
    (index,) = rng.choices(free, None if weights is None else [weights[i] for i in free])
    pick = DNA(index, point.branch(index, position).random(rng, prior).children)
    changed = choices.replace(position, pick)
    if point.sorted:
        changed = DNA(None, sorted(changed.children, key=lambda pick: pick.value))  # type: ignore[arg-type, return-value]
    return changed
