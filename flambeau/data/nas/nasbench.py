"""NAS-Bench cells, and *digits-nasbench*: every small cell trained on the 8x8 digits, as a table.

A cell (Ying et al. 2019, "NAS-Bench-101", section 2) is a directed acyclic graph from an input to an output vertex,
whose inner vertices are operations. Two labelled graphs that are the same up to a renaming of inner vertices are one
cell; `Cell.key` is the graph hash of NAS-Bench-101 and is equal for them.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

OPERATIONS = ("conv3x3", "conv1x1", "maxpool3x3")
DIGITS_TABLE = Path(__file__).parent / "embedded" / "digits_nasbench.npz"


@dataclass(frozen=True)
class Cell:
    """A labelled cell.

    Args:
        matrix: upper triangular 0/1 adjacency over all vertices, `matrix[i][j]` an edge from i to j; vertex 0 is the
            input, the last one the output.
        operations: name of the operation of each inner vertex, in order (see `OPERATIONS`).

    Raises:
        ValueError: not square, not upper triangular, or a wrong number or name of operations.
    """

    matrix: tuple[tuple[int, ...], ...]
    operations: tuple[str, ...]

    def __post_init__(self) -> None:
        n = len(self.matrix)
        if n < 2 or any(len(row) != n for row in self.matrix):
            raise ValueError(f"matrix: expected a square matrix of at least 2 vertices, got rows {self.matrix}")
        if any(self.matrix[i][j] not in ((0, 1) if j > i else (0,)) for i in range(n) for j in range(n)):
            raise ValueError(f"matrix: expected 0/1 above the diagonal and 0 elsewhere, got {self.matrix}")
        if len(self.operations) != n - 2:
            raise ValueError(f"operations: expected {n - 2} for {n} vertices, got {len(self.operations)}")
        for operation in self.operations:
            if operation not in OPERATIONS:
                raise ValueError(f"operations: expected names from {OPERATIONS}, got {operation!r}")

    @classmethod
    def from_edges(cls, edges: Sequence[int], operations: Sequence[str]) -> Cell:
        """The cell whose upper triangle, read row by row, is `edges`."""
        n = len(operations) + 2
        if len(edges) != n * (n - 1) // 2:
            raise ValueError(f"edges: expected {n * (n - 1) // 2} for {n} vertices, got {len(edges)}")
        values = iter(edges)
        rows = tuple(tuple(int(next(values)) if j > i else 0 for j in range(n)) for i in range(n))
        return cls(rows, tuple(operations))

    @property
    def edges(self) -> int:
        """Number of edges."""
        return sum(map(sum, self.matrix))

    @cached_property
    def pruned(self) -> Cell | None:
        """The cell without the vertices that are on no path from input to output; None if there is no path at all."""
        n = len(self.matrix)
        forward, backward = {0}, {n - 1}
        for j in range(n):
            if any(self.matrix[i][j] for i in forward):
                forward.add(j)
        for i in reversed(range(n)):
            if any(self.matrix[i][j] for j in backward):
                backward.add(i)
        kept = sorted(forward & backward)
        if n - 1 not in forward:
            return None
        rows = tuple(tuple(self.matrix[i][j] for j in kept) for i in kept)
        return Cell(rows, tuple(self.operations[v - 1] for v in kept[1:-1]))

    @cached_property
    def key(self) -> str:
        """Hash of the pruned cell, invariant to the order of inner vertices: the `module_hash` of NAS-Bench-101.

        Raises:
            ValueError: the output is not connected to the input.
        """
        cell = self.pruned
        if cell is None:
            raise ValueError("matrix: the output is not connected to the input")
        labels = [-1, *(OPERATIONS.index(operation) for operation in cell.operations), -2]
        n, matrix = len(labels), cell.matrix
        degrees = [(sum(matrix[v]), sum(row[v] for row in matrix)) for v in range(n)]
        hashes = [_md5(str((*degrees[v], labels[v]))) for v in range(n)]
        for _ in range(n):
            hashes = [
                _md5(
                    "".join(sorted(hashes[w] for w in range(n) if matrix[w][v]))
                    + "|"
                    + "".join(sorted(hashes[w] for w in range(n) if matrix[v][w]))
                    + "|"
                    + hashes[v]
                )
                for v in range(n)
            ]
        return _md5(str(sorted(hashes)))


def _md5(text: str) -> str:
    return hashlib.md5(text.encode()).hexdigest()


def enumerate_cells(vertices: int = 5, edges: int = 9) -> Iterator[Cell]:
    """Every distinct cell with at most `vertices` vertices and `edges` edges, the first labelling of each.

    Up to 5 vertices and 9 edges there are 1 + 6 + 84 + 2441 = 2532 cells.
    """
    seen = set()
    for n in range(2, vertices + 1):
        for bits in itertools.product((0, 1), repeat=n * (n - 1) // 2):
            if sum(bits) > edges:
                continue
            graph = Cell.from_edges(bits, ("conv3x3",) * (n - 2))
            if graph.pruned is None or len(graph.pruned.matrix) < n:
                continue
            for operations in itertools.product(OPERATIONS, repeat=n - 2):
                cell = Cell(graph.matrix, operations)
                if cell.key not in seen:
                    seen.add(cell.key)
                    yield cell


class Result(NamedTuple):
    """What training a cell gave: accuracies as fractions, seconds of one training."""

    validation: float
    test: float
    seconds: float


class NasBench:
    """A table of trained cells.

    Args:
        path: a file by `write_table`.

    Attributes:
        budgets: training budgets (steps or epochs), ascending.
        accuracy: `[cells, validation|test, budgets, seeds]`, fractions.
        seconds: `[cells, budgets, seeds]`.

    Raises:
        ValueError: `path` is not such a table.
        FileNotFoundError: there is no such file.
    """

    def __init__(self, path: Path | str):
        try:
            with np.load(path, allow_pickle=False) as stored:
                self.vertices, self.matrices, self.operations = (
                    stored[name] for name in ("vertices", "matrices", "operations")
                )
                self.accuracy, self.seconds = stored["accuracy"], stored["seconds"]
                self.budgets = tuple(stored["budgets"].tolist())
                keys = stored["keys"]
        except (KeyError, ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(f"path: {path} is not a table of cells ({error})") from error
        self.seeds = self.accuracy.shape[-1]
        self.row = {bytes(key).hex(): i for i, key in enumerate(keys)}

    def __len__(self) -> int:
        return len(self.row)

    def __contains__(self, cell: Cell) -> bool:
        return cell.pruned is not None and cell.key in self.row

    def cell(self, row: int) -> Cell:
        """The cell of a row of the table."""
        n = int(self.vertices[row])
        matrix = tuple(tuple(map(int, line[:n])) for line in self.matrices[row][:n])
        return Cell(matrix, tuple(OPERATIONS[i] for i in self.operations[row][: n - 2]))

    @property
    def cells(self) -> list[Cell]:
        """All cells, in the order of the rows."""
        return [self.cell(row) for row in range(len(self))]

    def query(self, cell: Cell, budget: int | None = None, seed: int | None = None) -> Result:
        """The result of training `cell` (in any labelling) for `budget`, by default the largest.

        `seed`: one of the trainings; None is the mean over all of them.

        Raises:
            ValueError: the cell is disconnected or not in the table, or there is no such budget or seed.
        """
        at = self._budget(budget)
        if seed is not None and not 0 <= seed < self.seeds:
            raise ValueError(f"seed: expected one of 0..{self.seeds - 1}, got {seed}")
        row = self.row.get(cell.key)
        if row is None:
            raise ValueError(f"cell: {cell} is not in the table")
        chosen = slice(None) if seed is None else slice(seed, seed + 1)
        validation, test = self.accuracy[row, :, at, chosen].mean(-1)
        return Result(float(validation), float(test), float(self.seconds[row, at, chosen].mean()))

    def validation(self, budget: int | None = None) -> np.ndarray:
        """Mean validation accuracy of every cell `[cells]`."""
        return self.accuracy[:, 0, self._budget(budget)].mean(-1)

    def _budget(self, budget: int | None) -> int:
        if budget is not None and budget not in self.budgets:
            raise ValueError(f"budget: expected one of {self.budgets}, got {budget}")
        return len(self.budgets) - 1 if budget is None else self.budgets.index(budget)


class DigitsNasBench(NasBench):
    """All 2532 cells of at most 5 vertices and 9 edges, trained on 8x8 digits with 3 seeds; budgets 75 and 150 steps.

    Made by `scripts/build_digits_nasbench.py`, where the protocol stands.
    """

    def __init__(self, path: Path | str = DIGITS_TABLE):
        super().__init__(path)


def cell_space(vertices: int = 5):
    """The cells of `vertices` vertices as a program with decisions: edges `oneof([0, 1])`, operations `oneof`.

    Decisions are named `edge_0_1` (row by row of the upper triangle) and `operation_1`. Some points are disconnected
    cells, many are the same cell; both are what a searcher has to live with.
    """
    from flambeau.symbolic import oneof, symbolize

    pairs = list(itertools.combinations(range(vertices), 2))
    return symbolize(Cell.from_edges)(
        edges=[oneof([0, 1], name=f"edge_{i}_{j}") for i, j in pairs],
        operations=[oneof(list(OPERATIONS), name=f"operation_{i}") for i in range(1, vertices - 1)],
    )


def digits_split() -> list[tuple[np.ndarray, np.ndarray]]:
    """Training, validation and test part (900, 450, 447) of the digits: images `[N, 8, 8]` in [0, 1] and labels."""
    from sklearn.datasets import load_digits

    images, labels = load_digits().images.astype(np.float32) / 16, load_digits().target.astype(np.int64)
    order = np.random.default_rng(0).permutation(len(images))
    return [(images[part], labels[part]) for part in np.split(order, (900, 1350))]


def write_table(
    path: Path, cells: Sequence[Cell], accuracy: np.ndarray, seconds: np.ndarray, budgets: Sequence[int]
) -> None:
    """Write a table that `NasBench` reads, atomically.

    Args:
        cells: one a row, no two the same.
        accuracy: `[cells, validation|test, budgets, seeds]`.
        seconds: `[cells, budgets, seeds]`.
    """
    if accuracy.shape != (len(cells), 2, *seconds.shape[1:]) or seconds.shape[1] != len(budgets):
        raise ValueError(f"accuracy, seconds: shapes {accuracy.shape}, {seconds.shape} do not fit {len(cells)} cells")
    vertices = np.array([len(cell.matrix) for cell in cells], np.uint8)
    largest = int(max(vertices, default=2))
    matrices = np.zeros((len(cells), largest, largest), np.uint8)
    operations = np.zeros((len(cells), largest - 2), np.uint8)
    for i, cell in enumerate(cells):
        matrices[i, : vertices[i], : vertices[i]] = cell.matrix
        operations[i, : vertices[i] - 2] = [OPERATIONS.index(name) for name in cell.operations]
    arrays = {
        "vertices": vertices,
        "matrices": matrices,
        "operations": operations,
        "keys": np.array([list(bytes.fromhex(cell.key)) for cell in cells], np.uint8),
        "budgets": np.array(budgets),
        "accuracy": accuracy.astype(np.float32),
        "seconds": seconds.astype(np.float32),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    os.replace(temporary, path)
