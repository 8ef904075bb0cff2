"""A small image classifier around one NAS-Bench cell."""

from __future__ import annotations

import itertools

import torch
from jaxtyping import Float
from torch import Tensor, nn

from flambeau.data.nas.nasbench import Cell


class CellNetwork(nn.Module):
    """Stem convolution, one cell, global average pooling, linear classifier (after Ying et al. 2019, section 2).

    Inner vertices apply their operation to the sum of their inputs; every branch into the output passes its own 1x1
    convolution before the branches are summed. Convolutions, and that sum, are followed by batch norm and ReLU.

    `replicas` networks of the same cell can live in one object (as groups of the convolutions): they share nothing
    and train as they would alone, only faster than one after the other.

    Args:
        cell: an unpruned cell is pruned first.
        channels: width of every vertex.
        replicas: number of independent networks; inputs and outputs have their channels side by side.

    Raises:
        ValueError: the output of the cell is not connected to its input.
    """

    def __init__(self, cell: Cell, channels: int = 8, classes: int = 10, in_channels: int = 1, replicas: int = 1):
        super().__init__()
        if cell.pruned is None:
            raise ValueError("cell: the output is not connected to the input")
        self.cell = cell = cell.pruned
        self.replicas = replicas
        wide = channels * replicas
        self.stem = _convolution(in_channels * replicas, wide, 3, replicas)
        self.operations = nn.ModuleList(cell_operation(name, wide, replicas) for name in cell.operations)
        branches = sum(row[-1] for row in cell.matrix)
        self.branches = nn.ModuleList(nn.Conv2d(wide, wide, 1, groups=replicas, bias=False) for _ in range(branches))
        self.norm = nn.BatchNorm2d(wide)
        self.classifier = nn.Conv2d(wide, classes * replicas, 1, groups=replicas)

    @classmethod
    def stack(cls, networks: list[CellNetwork]) -> CellNetwork:
        """One network holding copies of `networks`, all of the same cell and sizes, as its replicas."""
        first = networks[0]
        stacked = cls(
            first.cell,
            first.norm.num_features,
            first.classifier.out_channels,
            first.stem[0].in_channels,
            replicas=len(networks),
        )
        states = [network.state_dict() for network in networks]
        stacked.load_state_dict(
            {
                name: torch.cat([state[name] for state in states]) if value.ndim else value
                for name, value in states[0].items()
            }
        )
        return stacked

    def forward(self, images: Float[Tensor, "batch in_channels*replicas height width"]):
        """Logits `[batch, classes * replicas]`."""
        values = [self.stem(images)]
        for vertex, operation in enumerate(self.operations, start=1):
            values.append(operation(self._inputs(values, vertex)))
        sources = [value for value, row in zip(values, self.cell.matrix) if row[-1]]
        output = self.norm(sum(branch(source) for branch, source in zip(self.branches, sources))).relu()
        return self.classifier(output.mean((2, 3), keepdim=True)).flatten(1)

    def _inputs(self, values: list[Tensor], vertex: int) -> Tensor:
        return sum(value for value, row in zip(values, self.cell.matrix) if row[vertex])


class OpenCell(nn.Module):
    """The network of `CellNetwork` with its cell left open: edges are numbers, operations modules.

    With `edges=[oneof([0, 1]), ...]` and `operations=[oneof([...]), ...]` it is a search space over cells, and lowers
    to a super-network whose children share weights.

    Args:
        edges: the upper triangle of the adjacency, row by row.
        operations: a module a vertex between input and output, `[batch, channels, height, width]` in and out.
    """

    def __init__(self, edges: list, operations: list, channels: int = 8, classes: int = 10, in_channels: int = 1):
        super().__init__()
        n = len(operations) + 2
        if len(edges) != n * (n - 1) // 2:
            raise ValueError(f"edges: expected {n * (n - 1) // 2} for {len(operations)} operations, got {len(edges)}")
        self.edges = dict(zip(itertools.combinations(range(n), 2), edges))
        self.stem = _convolution(in_channels, channels, 3, 1)
        self.operations = nn.ModuleList(operations)
        self.branches = nn.ModuleList(nn.Conv2d(channels, channels, 1, bias=False) for _ in range(n - 1))
        self.norm = nn.BatchNorm2d(channels)
        self.classifier = nn.Linear(channels, classes)

    def forward(self, images: Float[Tensor, "batch in_channels height width"]) -> Float[Tensor, "batch classes"]:
        """Logits."""
        values, last = [self.stem(images)], len(self.branches)
        for vertex, operation in enumerate(self.operations, start=1):
            values.append(operation(sum(self.edges[i, vertex] * value for i, value in enumerate(values))))
        branches = zip(self.branches, values)
        output = sum(self.edges[i, last] * branch(value) for i, (branch, value) in enumerate(branches))
        return self.classifier(self.norm(output).relu().mean((2, 3)))


def cell_operation(name: str, channels: int = 8, groups: int = 1) -> nn.Module:
    """One of `flambeau.data.nas.nasbench.OPERATIONS`; convolutions with batch normalisation and ReLU."""
    if name == "maxpool3x3":
        return nn.MaxPool2d(3, stride=1, padding=1)
    return _convolution(channels, channels, {"conv3x3": 3, "conv1x1": 1}[name], groups)


def _convolution(inputs: int, outputs: int, kernel: int, groups: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )
