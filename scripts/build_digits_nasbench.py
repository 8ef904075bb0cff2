"""Train every cell of digits-nasbench and write the table that `flambeau.data.nas.nasbench` reads.

    python scripts/build_digits_nasbench.py            # about 45 minutes on one core; interrupt and re-run at will

Protocol: 8x8 digits scaled to [0, 1], split 900/450/447; 8 channels; Adam 5e-3, batches of 32, 150 steps; seeds 0-2
(initialisation and order of the batches). Accuracies are taken at 75 and 150 steps. Seconds are processor seconds of
training, a third of what the three seeds took together. One thread, so that the times of cells compare.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from flambeau.data.nas.nasbench import DIGITS_TABLE, Cell, digits_split, enumerate_cells, write_table
from flambeau.models.vision.cell_network import CellNetwork

SEEDS, BUDGETS, BATCH, RATE = (0, 1, 2), (75, 150), 32, 5e-3


def orders(seed: int, count: int) -> torch.Tensor:
    """Example numbers of each step's batch `[steps, batch]`: a new permutation an epoch, its last part dropped."""
    generator = torch.Generator().manual_seed(seed)
    per_epoch = count // BATCH
    epochs = -(-BUDGETS[-1] // per_epoch)
    shuffled = [torch.randperm(count, generator=generator)[: per_epoch * BATCH].view(-1, BATCH) for _ in range(epochs)]
    return torch.cat(shuffled)[: BUDGETS[-1]]


def initial(cell: Cell, seed: int) -> CellNetwork:
    torch.manual_seed(seed)
    return CellNetwork(cell)


class Protocol:
    """The fixed batches and evaluation images of some seeds, trained side by side."""

    def __init__(self, seeds: tuple[int, ...], dtype: torch.dtype = torch.float32):
        (train, labels), valid, test = digits_split()
        self.seeds, self.dtype = seeds, dtype
        order = torch.stack([orders(seed, len(train)) for seed in seeds], dim=2)  # [steps, batch, seeds]
        images = torch.from_numpy(train).to(dtype)[order]  # [steps, batch, seeds, 8, 8]
        self.batches = [batch.contiguous(memory_format=torch.channels_last) for batch in images]
        self.labels = torch.from_numpy(labels)[order]  # [steps, batch, seeds]
        self.evaluation = [self.repeated(*valid), self.repeated(*test)]

    def repeated(self, images: np.ndarray, labels: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        wide = torch.from_numpy(images).to(self.dtype)[:, None].repeat(1, len(self.seeds), 1, 1)
        return wide.contiguous(memory_format=torch.channels_last), torch.from_numpy(labels)[:, None]

    def train(self, cell: Cell) -> tuple[np.ndarray, np.ndarray]:
        """Accuracies `[val|test, budgets, seeds]` and processor seconds `[budgets, seeds]`."""
        network = CellNetwork.stack([initial(cell, seed) for seed in self.seeds])
        network = network.to(self.dtype, memory_format=torch.channels_last)
        optimizer = torch.optim.Adam(network.parameters(), lr=RATE, fused=True)
        accuracy = np.zeros((2, len(BUDGETS), len(self.seeds)), np.float32)
        seconds = np.zeros((len(BUDGETS), len(self.seeds)), np.float32)
        spent, start = 0.0, time.process_time()
        for step, (images, labels) in enumerate(zip(self.batches, self.labels), start=1):
            logits = network(images).unflatten(1, (len(self.seeds), -1))
            # The sum over seeds of each seed's mean: every replica gets the gradient it would have alone.
            loss = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten()) * len(self.seeds)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step in BUDGETS:
                spent += time.process_time() - start
                at = BUDGETS.index(step)
                seconds[at] = spent / len(self.seeds)
                accuracy[:, at] = [self.accuracy(network, *data) for data in self.evaluation]
                start = time.process_time()
        return accuracy, seconds

    @torch.no_grad()
    def accuracy(self, network: CellNetwork, images: torch.Tensor, labels: torch.Tensor) -> np.ndarray:
        network.eval()
        predicted = network(images).unflatten(1, (len(self.seeds), -1)).argmax(-1)
        network.train()
        return (predicted == labels).float().mean(0).numpy()


def prepare() -> None:
    """Each process makes its batches once."""
    global protocol
    torch.set_num_threads(1)
    protocol = Protocol(SEEDS)


def train(cell: Cell) -> tuple[np.ndarray, np.ndarray]:
    return protocol.train(cell)


def check_grouping(cells: list[Cell]) -> None:
    """The seeds trained together give what each gives alone (in double precision: 150 steps amplify rounding)."""
    together, alone = Protocol(SEEDS, torch.float64), [Protocol((seed,), torch.float64) for seed in SEEDS]
    for cell in cells:
        ours, _ = together.train(cell)
        theirs = np.concatenate([protocol.train(cell)[0] for protocol in alone], axis=-1)
        if not np.array_equal(ours, theirs):
            raise AssertionError(f"grouped and separate training differ for {cell}: {ours} and {theirs}")
        print(f"grouped = separate for {cell.operations}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=DIGITS_TABLE)
    parser.add_argument("--processes", type=int, default=1, help="cells trained at once, one thread each")
    parser.add_argument("--limit", type=int, help="stop after this many cells")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cells = list(enumerate_cells())
    random.Random(0).shuffle(cells)  # what is there after an interruption is then a fair sample
    check_grouping(cells[:2])
    partial = arguments.out.with_suffix(".partial.npz")
    accuracy = np.full((len(cells), 2, len(BUDGETS), len(SEEDS)), np.nan, np.float32)
    seconds = np.full((len(cells), len(BUDGETS), len(SEEDS)), np.nan, np.float32)
    done = 0
    if partial.exists():
        with np.load(partial, allow_pickle=False) as stored:
            done = len(stored["accuracy"])
            accuracy[:done], seconds[:done] = stored["accuracy"], stored["seconds"]
        print(f"continuing after {done} cells", flush=True)
    begun, first, saved = time.monotonic(), done, time.monotonic()
    end = min(len(cells), arguments.limit or len(cells))
    with multiprocessing.Pool(arguments.processes, prepare) as pool:
        for row, trained in enumerate(pool.imap(train, cells[done:end]), start=done):
            accuracy[row], seconds[row] = trained
            done = row + 1
            if time.monotonic() - saved > 30 or done == end:
                saved = time.monotonic()
                write_table(partial, cells[:done], accuracy[:done], seconds[:done], BUDGETS)
                rate = (saved - begun) / (done - first)
                print(f"{done}/{end} cells, {rate:.2f} s each, {rate * (end - done) / 60:.1f} minutes left", flush=True)
    if end == len(cells):
        write_table(arguments.out, cells, accuracy, seconds, BUDGETS)
        os.remove(partial)


if __name__ == "__main__":
    main()
