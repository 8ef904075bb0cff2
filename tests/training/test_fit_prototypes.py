from functools import partial

import pytest
import torch

from flambeau.data import Batches
from flambeau.models.prototype_net import PrototypeNet
from flambeau.models.tabular.autoencoder import MLPDecoder, MLPEncoder
from flambeau.objectives.prototype import PrototypeLoss
from flambeau.training import Trainer
from flambeau.training.prototypes import fit_prototypes


def clusters(count=240):
    generator = torch.Generator().manual_seed(0)
    centres = 3 * torch.randn(3, 5, generator=generator)
    y = torch.arange(count) % 3
    return centres[y] + 0.3 * torch.randn(count, 5, generator=generator), y


def fitted(steps=120, folder=None, loss=None, **options):
    torch.manual_seed(0)
    net = PrototypeNet(MLPEncoder(5, (8,), 4), MLPDecoder(5, (8,), 4), 3, 6, memory=240)
    trainer = Trainer(steps=steps, save_every=3, optimizer=partial(torch.optim.Adam, lr=0.01))
    fit = fit_prototypes(net, loss or PrototypeLoss(), Batches(clusters(), 60), trainer, folder=folder, **options)
    return net, fit


@pytest.mark.parametrize("init", ["kmeans", "uniform"])
@pytest.mark.parametrize("pool", ["batch", "bank", "epoch"])
def test_it_learns_and_names_the_training_cases(init, pool):
    loss = PrototypeLoss(r1_pool=pool, epoch_size=240 if pool == "epoch" else None)
    net, fit = fitted(init=init, loss=loss)
    x, y = clusters()
    assert (net.predict(x) == y).float().mean() > 0.95
    codes = net.encode_all(x)
    apart = (net.prototypes.detach().unsqueeze(1) - codes).square().sum(-1)
    assert torch.equal(net.training_index, apart.argmin(1))
    assert {"cls", "ae", "r1", "r2", "accuracy"} <= set(fit.history[0])


def test_both_starts_take_the_same_number_of_steps():
    counted = {"kmeans": [], "uniform": []}
    for init, seen in counted.items():

        def loss(net, batch, seen=seen):
            seen.append(1)
            return PrototypeLoss()(net, batch)

        fitted(steps=13, init=init, loss=loss)
    assert len(counted["kmeans"]) == len(counted["uniform"]) == 13


@pytest.mark.parametrize("stage", ["warmup", "train"])
def test_an_interrupted_training_continues_exactly(tmp_path, stage, monkeypatch):
    loss = PrototypeLoss(r1_pool="bank")
    whole, _ = fitted(steps=40, loss=loss)
    steps = {"warmup": 4, "train": 20}[stage]  # the warm-up has 7
    original, calls = PrototypeLoss.__call__, []

    def interrupted(self, net, batch):
        calls.append(1)
        if len(calls) > steps:
            raise RuntimeError("power cut")
        return original(self, net, batch)

    monkeypatch.setattr(PrototypeLoss, "__call__", interrupted)
    with pytest.raises(RuntimeError, match="power cut"):
        fitted(steps=40, folder=tmp_path / "fit", loss=loss)
    steps, calls[:] = 40, []
    again, _ = fitted(steps=40, folder=tmp_path / "fit", loss=loss)
    assert len(calls) == {"warmup": 37, "train": 21}[stage], "it goes on from the last checkpoint, of every third step"
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_bad_arguments():
    with pytest.raises(ValueError, match="init"):
        fitted(init="zeros")
    with pytest.raises(ValueError, match="warmup"):
        fitted(warmup=1.0)
    with pytest.raises(ValueError, match="at least 2"):
        fitted(steps=1)
