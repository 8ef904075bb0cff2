"""Functions that the tests of SparK run in processes."""

import warnings

import torch
from torch import nn

from flambeau.data import Batches
from flambeau.training import Trainer
from flambeau.training.self_supervised.spark import SparK

warnings.filterwarnings("ignore")


def model():
    torch.manual_seed(0)
    first, second = nn.Conv2d(1, 4, 3, 2, 1), nn.Conv2d(4, 8, 3, 2, 1)
    encoder = nn.Sequential(first, nn.BatchNorm2d(4), nn.ReLU(), second, nn.BatchNorm2d(8), nn.ReLU())
    return SparK(encoder, (16, 24), decoder_width=8)


def loss(model, x):
    return model(x)["loss"]


def fit(plan, folder):
    """Losses and weights of a short training under `plan`, and whether another call continues it."""
    trained = model()
    x = torch.rand(16, 1, 16, 24, generator=torch.Generator().manual_seed(1))
    done = Trainer(steps=4, parallel=plan).fit(trained, loss, Batches(x, 4), folder=folder, seed=3)
    masks = trained(x[:4])["mask"]  # the global generators are put back to what they were, the same on every process
    again = model()
    Trainer(steps=4, parallel=plan).fit(again, loss, Batches(x, 4), folder=folder, seed=3)
    same = all(torch.equal(value, again.state_dict()[name]) for name, value in trained.state_dict().items())
    return {
        "losses": [entry["loss"] for entry in done.history],
        "weights": {name: value.clone() for name, value in trained.state_dict().items()},
        "same": same,
        "dense": bool(trained.backbone.sparse_context.active is None and masks.any()),
    }


def fits(folder):
    return {plan: fit(plan, f"{folder}/{plan}") for plan in ("dp2", "fsdp2")}
