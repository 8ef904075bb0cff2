"""A small training that uses every part at once, and a process that runs it so that a test can kill it."""

from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch._dynamo  # optimisers import it when first used; here it is imported once for all processes
import torch.utils.tensorboard
from safetensors.torch import save_file
from torch import nn

from flambeau.data import Batches
from flambeau.training import Trainer, WarmupCosine


def make_model() -> nn.Module:
    torch.manual_seed(7)
    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 3))


def make_data(jitter: bool = True) -> Batches:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(90, 6, generator=generator)
    y = (x[:, 0] > 0).long() + (x[:, 1] > 0).long()

    def add_noise(batch, generator):
        return batch[0] + 0.1 * torch.randn(batch[0].shape, generator=generator), batch[1]

    return Batches((x, y), 8, transform=add_noise if jitter else None)


def loss(model, batch):
    x, y = batch
    scale = 1 + 0.01 * np.random.rand()  # a user's own NumPy noise must resume as well
    value = nn.functional.cross_entropy(model(x), y) * scale
    return {"loss": value, "error": (model(x).argmax(1) != y).float().mean()}


def evaluate(model):
    x, y = make_data(jitter=False).source
    torch.rand(3)  # evaluations may draw numbers without changing the training
    return {"nll": nn.functional.cross_entropy(model(x), y).item()}


def make_trainer(**changes) -> Trainer:
    settings = dict(
        steps=30,
        optimizer=partial(torch.optim.SGD, lr=0.1, momentum=0.9),
        schedule=WarmupCosine(5),
        accumulate=2,
        clip=1.0,
        ema=0.9,
        evaluate_every=7,
        select="min",
        save_every=2,
    )
    return Trainer(**{**settings, **changes})


class Announce:
    """A progress that tells each step to the test, which decides when to kill."""

    def __init__(self, connection):
        self.connection = connection

    def __call__(self, description, total):
        return self

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        pass

    def advance(self, n=1, **values):
        self.connection.send(n)


def train_in(folder: Path, precision: str, connection) -> None:
    """Train (or continue) in `folder` and write the last weights there."""
    torch.set_num_threads(1)
    model = make_model()
    fit = make_trainer(precision=precision).fit(
        model, loss, make_data(), evaluate=evaluate, folder=folder, progress=Announce(connection), seed=3
    )
    save_file(model.state_dict(), folder / "final.safetensors")
    connection.send(("done", fit.steps))
