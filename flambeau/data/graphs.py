"""Small graphs that come with the library."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor


@dataclass(frozen=True)
class Graph:
    """A graph with optional node features and labels.

    Args:
        edges: source and target of each edge; an undirected edge is there in both directions.
        nodes: how many nodes; they are numbered from 0.
        features: of each node, or None.
        labels: class of each node, or None.
        classes: names of the classes.

    Raises:
        ValueError: wrong shapes, or an edge to a node that does not exist.
    """

    edges: Int64[Tensor, "2 edges"]
    nodes: int
    features: Float[Tensor, "nodes features"] | None = None
    labels: Int64[Tensor, " nodes"] | None = None
    classes: list[str] | None = None

    def __post_init__(self) -> None:
        if self.edges.ndim != 2 or len(self.edges) != 2 or self.edges.dtype != torch.int64:
            raise ValueError(f"edges must be int64 [2, edges], got {self.edges.dtype} {list(self.edges.shape)}")
        if self.edges.numel() and not (self.edges.min() >= 0 and self.edges.max() < self.nodes):
            raise ValueError(f"edges must lie in [0, {self.nodes}), got {self.edges.min()} to {self.edges.max()}")
        for name, values in (("features", self.features), ("labels", self.labels)):
            if values is not None and len(values) != self.nodes:
                raise ValueError(f"{name} must have one row for each of {self.nodes} nodes, got {len(values)}")

    def adjacency(self) -> Float[Tensor, "nodes nodes"]:
        """Dense: 1 at [target, source] of each edge."""
        matrix = torch.zeros(self.nodes, self.nodes)
        matrix[self.edges[1], self.edges[0]] = 1
        return matrix


# Zachary 1977, figure 3: for each member the friends of a higher number.
_FRIENDS = """
0: 1 2 3 4 5 6 7 8 10 11 12 13 17 19 21 31 / 1: 2 3 7 13 17 19 21 30 / 2: 3 7 8 9 13 27 28 32 / 3: 7 12 13 / 4: 6 10 /
5: 6 10 16 / 6: 16 / 8: 30 32 33 / 9: 33 / 13: 33 / 14: 32 33 / 15: 32 33 / 18: 32 33 / 19: 33 / 20: 32 33 / 22: 32 33 /
23: 25 27 29 32 33 / 24: 25 27 31 / 25: 31 / 26: 29 33 / 27: 33 / 28: 31 33 / 29: 32 33 / 30: 32 33 / 31: 32 33 / 32: 33
"""
_SIDES = "0000000001000011001010111111111111"


def karate_club() -> Graph:
    """Zachary's karate club (1977): 34 members, 78 friendships, labelled by the club each joined after the split.

    Members 0 (the instructor) and 33 (the president) lead the two sides.
    """
    pairs = []
    for entry in _FRIENDS.split("/"):
        member, friends = entry.split(":")
        pairs += [(int(member), int(friend)) for friend in friends.split()]
    one_way = torch.tensor(pairs).T
    labels = torch.tensor([int(side) for side in _SIDES])
    return Graph(torch.cat((one_way, one_way.flip(0)), dim=1), 34, None, labels, ["instructor", "president"])
