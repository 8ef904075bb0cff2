from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from flambeau.data import Batches, ImageSet, RandomFlip
from flambeau.data.images.public import Pictures
from flambeau.models.vision.vit import ViT
from flambeau.training import Trainer, fine_tune

SGD = partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=0.1)
TRAINER = Trainer(steps=6, optimizer=SGD)


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.3))
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.backbone(x).mean((2, 3)))


def classifier(seed=0):
    torch.manual_seed(seed)
    return Classifier()


def images(count=24):
    generator = torch.Generator().manual_seed(5)
    return ImageSet(torch.rand(count, 1, 8, 8, generator=generator), torch.arange(count) % 3, list("abc"))


def equal(one, other):
    return all(torch.equal(value, other[name]) for name, value in one.items())


def state(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def test_it_is_cross_entropy_on_the_one_trainer():
    ours, theirs, data = classifier(), classifier(), images()

    def loss(model, batch):
        return F.cross_entropy(model(batch[0]), batch[1])

    fit = fine_tune(ours, data, trainer=TRAINER, batch_size=8, seed=3)
    plain = TRAINER.fit(theirs, loss, Batches((data.images, data.labels), 8), seed=3)
    assert equal(ours.state_dict(), theirs.state_dict())
    assert [entry["loss"] for entry in fit.history] == [entry["loss"] for entry in plain.history]
    assert all(0 <= entry["accuracy"] <= 1 for entry in fit.history)


def test_a_map_style_dataset_gives_the_same():
    ours, theirs, data = classifier(), classifier(), images()
    fine_tune(ours, data, trainer=TRAINER, batch_size=8)
    fine_tune(theirs, TensorDataset(data.images, data.labels), trainer=TRAINER, batch_size=8)
    assert equal(ours.state_dict(), theirs.state_dict())


def test_only_images_are_transformed():
    seen = []

    class Watched(Classifier):
        def forward(self, x):
            seen.append(x)
            return super().forward(x)

    data = images()
    fine_tune(Watched(), data, trainer=TRAINER, batch_size=24, transform=RandomFlip(1.0))
    flipped = {tuple(image.flatten().tolist()) for image in data.images.flip(3)}
    assert all(tuple(image.flatten().tolist()) in flipped for image in seen[0])


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_frozen_part_is_fixed_to_the_bit_and_then_learns(accumulate):
    network, kept = classifier(), []
    start = state(network)

    def evaluate(model):
        kept.append(state(model))
        return {}

    trainer = replace(TRAINER, evaluate_every=1, accumulate=accumulate)
    fine_tune(network, images(), trainer=trainer, batch_size=8, frozen="backbone", frozen_steps=3, evaluate=evaluate)
    for step, now in enumerate(kept, start=1):
        for name, value in now.items():
            if name.startswith("head") or step > 3:
                assert not torch.equal(value, start[name]), (step, name)
            else:
                assert torch.equal(value, start[name]), (step, name)  # weights, and statistics, and their count
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_the_frozen_part_uses_its_running_statistics_and_no_dropout():
    network, data = classifier(), images()
    network.backbone[1].running_mean.fill_(0.3)
    with torch.no_grad():
        expected = F.cross_entropy(network.eval()(data.images), data.labels)
    fit = fine_tune(network, data, trainer=TRAINER, batch_size=24, frozen="backbone", frozen_steps=1)
    assert fit.history[0]["loss"] == pytest.approx(float(expected), abs=1e-6)
    assert fit.history[1]["loss"] != pytest.approx(float(expected), abs=1e-6)


@pytest.mark.parametrize("stopped_at", [2, 4])
def test_a_training_stopped_while_frozen_or_after_ends_as_one_that_was_not(tmp_path, stopped_at):
    class Stop(Exception):
        pass

    def fit(network, folder, evaluate):
        trainer = Trainer(steps=6, optimizer=partial(torch.optim.Adam, lr=0.01), save_every=1, evaluate_every=1)
        return fine_tune(
            network, images(), trainer=trainer, batch_size=8, frozen="backbone", frozen_steps=3, folder=folder,
            evaluate=evaluate,
        )  # fmt: skip

    calls = []

    def evaluate(model):
        calls.append(0)
        if len(calls) == stopped_at + 1 and not done:
            raise Stop
        return {}

    done: list[int] = []
    with pytest.raises(Stop):
        fit(classifier(), tmp_path / "a", evaluate)
    done.append(1)
    resumed, whole = classifier(), classifier()
    history = fit(resumed, tmp_path / "a", evaluate).history
    expected = fit(whole, tmp_path / "b", evaluate).history
    assert equal(resumed.state_dict(), whole.state_dict())
    assert [entry["loss"] for entry in history] == [entry["loss"] for entry in expected]


def test_layer_decay_is_passed_on():
    networks = []
    for decay in (None, 1.0, 0.01):
        torch.manual_seed(0)
        network = ViT((8, 8), 4, 8, 2, 2, in_channels=1, classes=3)
        before = state(network)
        fine_tune(network, images(), trainer=TRAINER, batch_size=8, layer_decay=decay)
        networks.append(network.state_dict())
    for name, value in networks[0].items():
        torch.testing.assert_close(networks[1][name], value)

    def moved(name, network):
        return float((network[name] - before[name]).abs().max())

    for name in ("patch_embed.proj.weight", "pos_embed", "blocks.0.mlp.fc1.weight"):
        assert moved(name, networks[2]) < 1e-3 * moved(name, networks[1])
    assert moved("head.weight", networks[2]) > 0.1 * moved("head.weight", networks[1])


def test_few_images_make_smaller_batches():
    assert fine_tune(classifier(), images(3), trainer=TRAINER, batch_size=64).steps == 6


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        (dict(frozen="backbone"), "frozen and a positive frozen_steps go together"),
        (dict(frozen_steps=3), "frozen and a positive frozen_steps go together"),
        (dict(frozen="encoder", frozen_steps=3), "no submodule 'encoder'; it has backbone, head"),
        (dict(layer_decay=0.5), "layer decay needs parameters of blocks"),
    ],
)
def test_bad_input(keywords, message):
    with pytest.raises(ValueError, match=message):
        fine_tune(classifier(), images(), trainer=TRAINER, **keywords)


def test_images_without_labels_and_networks_of_other_classes_are_refused():
    data = images()
    with pytest.raises(ValueError, match="train has no labels"):
        fine_tune(classifier(), ImageSet(data.images), trainer=TRAINER)
    with pytest.raises(ValueError, match="train has no labels"):
        fine_tune(classifier(), Pictures((Path("a.png"),)), trainer=TRAINER)
    four = ImageSet(data.images, data.labels, list("abcd"))
    with pytest.raises(ValueError, match=r"logits \[8, 4\], got \[8, 3\]"):
        fine_tune(classifier(), four, trainer=TRAINER, batch_size=8)
    with pytest.raises(ValueError, match="nothing outside of '0' is left to train"):
        whole = nn.Sequential(classifier())
        fine_tune(whole, data, trainer=TRAINER, frozen="0", frozen_steps=1)
