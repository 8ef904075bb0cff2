"""One network of shared weights for all cells of a table, and how well it ranks them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from flambeau.data import Batches
from flambeau.data.nas.nasbench import OPERATIONS, Cell, NasBench, digits_split
from flambeau.models.vision.cell_network import OpenCell, cell_operation
from flambeau.search.weight_sharing.supernet import Supernet
from flambeau.symbolic import oneof, symbolize
from flambeau.training import Trainer


def shared_and_alone(
    table: NasBench, *, steps: int, count: int, seed: int, progress: Any = None
) -> tuple[list[float], list[float]]:
    """Validation accuracies of `count` random cells of five vertices: with shared weights, and trained alone (table).

    The super-network is trained as in ENAS (Pham et al. 2018): each step draws a cell and trains its weights only.
    Accuracy uses the batch statistics of the validation images: running ones would mix the children.
    """
    (train, valid, _), rng = (images_and_labels(part) for part in digits_split()), np.random.default_rng(seed)
    torch.manual_seed(seed)
    program = symbolize(OpenCell)(
        edges=[oneof([0, 1], name=f"edge{i}") for i in range(10)],
        operations=[oneof(list(map(symbolize(cell_operation), OPERATIONS)), name=f"operation{i}") for i in range(3)],
    )
    supernet, cells = Supernet(program), [cell for cell in table.cells if len(cell.matrix) == 5]

    def choose(cell: Cell) -> None:
        edges = [cell.matrix[i][j] for i in range(5) for j in range(i + 1, 5)]
        supernet.choose(supernet.spec.from_numbers([*edges, *map(OPERATIONS.index, cell.operations)]))

    def one_child(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        choose(cells[rng.integers(len(cells))])
        return nn.functional.cross_entropy(model(batch[0].view(-1, 1, 8, 8)), batch[1])

    Trainer(steps=steps).fit(supernet, one_child, Batches(train, 64), progress=progress, seed=seed)
    shared, alone = [], []
    with torch.no_grad():
        for i in rng.choice(len(cells), count, replace=False):
            choose(cells[i])
            predicted = supernet(valid[0].view(-1, 1, 8, 8)).argmax(-1)
            shared.append(float((predicted == valid[1]).float().mean()))
            alone.append(float(table.query(cells[i]).validation))
    return shared, alone


def images_and_labels(part: tuple[np.ndarray, np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    """Images `[n, 64]` and labels `[n]` of a part of the digits, as tensors."""
    return torch.from_numpy(part[0]).flatten(1), torch.from_numpy(part[1])
