"""MoCo, SimCLR, BYOL and SwAV: their parts and updates, one process against two, resume, any channels, any backbone."""

import math
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
import method_workers as w

from flambeau.data.augment import ColorJitter, Compose, GaussianBlur, RandomFlip, RandomResizedCrop, Views
from flambeau.models.vision import ResNet, ViT
from flambeau.training import Trainer
from flambeau.training.parallel import run_processes
from flambeau.training.self_supervised import BYOL, MoCoV2, SimCLR, SwAV, feature_dim, pooled_features, pretrain


def cnn(channels=1, width=8):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width, 3, 2, 1)
    )


METHODS = {
    "moco": partial(MoCoV2, dim=8, queue=32),
    "simclr": partial(SimCLR, dim=8),
    "byol": partial(BYOL, dim=8, hidden=16, steps=10),
    "swav": partial(SwAV, dim=8, hidden=16, prototypes=6, frozen_steps=2),
}


def two_crops(size=12):
    """Safe for any channels: no hue, saturation or grey."""
    crop = Compose(RandomResizedCrop(size), RandomFlip(), ColorJitter(0.4, 0.4), GaussianBlur(0.5, (0.1, 1.0)))
    return Views(crop, crop)


def test_mocos_keys_come_from_the_average_and_join_the_queue():
    method = w.moco()
    a, b = w.views()
    first = {name: value.clone() for name, value in method.encoder.state_dict().items()}
    begun = method.queue.vectors.clone()
    keys = F.normalize(method.teacher(b), dim=1)
    queries = F.normalize(method.encoder(a), dim=1)
    logits = torch.cat([(queries * keys).sum(1, keepdim=True), queries @ begun.T], 1) / 0.2
    expected = -logits.log_softmax(1)[:, 0].mean()
    loss = method([a, b])["loss"]
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(method.queue.vectors[:8], keys)
    assert torch.equal(method.queue.vectors[8:], begun[8:])
    with torch.no_grad():
        for p in method.encoder.parameters():
            p.add_(1.0)
    method([a, b])  # the average moves at the beginning of this forward
    for name, value in method.teacher.module.state_dict().items():
        torch.testing.assert_close(value, 0.9 * first[name] + 0.1 * method.encoder.state_dict()[name])
    assert method.queue.position == 0  # 16 of 16: full


def test_identical_views_with_an_orthogonal_queue_have_a_closed_form():
    flat = nn.Sequential(nn.Flatten(), nn.Linear(6, 6, bias=False))
    method = MoCoV2(flat, input_shape=(1, 1, 6), dim=6, queue=4)
    for part in (method.encoder, method.teacher.module):
        part[1] = nn.Identity()
        with torch.no_grad():
            part[0].backbone[1].weight.copy_(torch.eye(6))
    method.queue.vectors.copy_(torch.eye(6)[2:])
    x = torch.eye(6)[:2].view(2, 1, 1, 6)
    assert method.eval()([x, x])["loss"].item() == pytest.approx(math.log(1 + 4 * math.exp(-1 / 0.2)), rel=1e-5)


def test_byols_target_takes_no_gradient_and_follows():
    method = BYOL(cnn(), input_shape=(1, 12, 12), dim=8, hidden=16, momentum=0.9)
    a, b = w.views()
    loss = method([a, b])["loss"]
    loss.backward()
    assert all(p.grad is None and not p.requires_grad for p in method.teacher.parameters())
    assert all(p.grad is not None for part in (method.encoder, method.predictor) for p in part.parameters())
    assert 0 <= loss.item() <= 8
    # symmetric in the views, up to the statistics that BatchNorm gathers
    method.eval()
    torch.testing.assert_close(method([a, b])["loss"], method([b, a])["loss"])


def test_swavs_prototypes_stay_at_first_and_codes_predict_across_views():
    torch.manual_seed(0)
    method = SwAV(cnn(), input_shape=(1, 12, 12), dim=8, hidden=16, prototypes=6, frozen_steps=2)
    optimizer = torch.optim.SGD(method.parameters(), lr=0.1, weight_decay=0.1)
    begun = method.prototypes.weight.clone()
    small = [view[:, :, :8, :8] for view in w.views()] * 2
    for step in range(3):
        assert torch.equal(method.prototypes.weight, begun), step
        optimizer.zero_grad()
        method([*w.views(), *small])["loss"].backward()
        optimizer.step()
    assert not torch.equal(method.prototypes.weight, begun)
    # one view of each size alone gives the same predictions as all together, without BatchNorm's statistics
    method.eval()
    whole = method([*w.views(), *small[:2]])["loss"]
    assert torch.isfinite(whole) and whole.item() > 0


def test_two_processes_are_one_on_the_joined_batch():
    outcomes, whole = run_processes(w.in_a_process, 2), w.joined()
    torch.testing.assert_close(torch.cat([o["codes"] for o in outcomes]), whole["codes"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(outcomes[0]["queue"], outcomes[1]["queue"])
    torch.testing.assert_close(outcomes[0]["queue"], whole["queue"], rtol=1e-4, atol=1e-5)
    for name in ("moco", "simclr", "swav"):
        for step in range(2):
            mean = sum(o[f"{name} losses"][step] for o in outcomes) / 2
            assert mean == pytest.approx(whole[f"{name} losses"][step], abs=1e-5), (name, step)
    for o in outcomes:
        torch.testing.assert_close(o["moco weight"], whole["moco weight"], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_learns_and_resumes_exactly(name, tmp_path):
    images = torch.rand(40, 1, 14, 14, generator=torch.Generator().manual_seed(1))

    def build():
        torch.manual_seed(1)
        return METHODS[name](cnn(), input_shape=(1, 12, 12))

    def fit(folder, save_every, method):
        trainer = Trainer(steps=8, optimizer=partial(torch.optim.Adam, lr=1e-3), save_every=save_every, keep=9)
        return pretrain(method, images, views=two_crops(), trainer=trainer, batch_size=8, folder=folder, seed=3)

    whole = build()
    before = whole.backbone[0].weight.clone()
    history = fit(tmp_path / "a", 3, whole).history
    assert len(history) == 8 and not torch.equal(before, whole.backbone[0].weight)
    for path in sorted((tmp_path / "a" / "checkpoints").iterdir())[1:]:  # as if it had been killed after the first
        if path.is_dir():
            for file in path.iterdir():
                file.unlink()
            path.rmdir()
        else:
            path.unlink()
    resumed = build()
    assert fit(tmp_path / "a", 3, resumed).steps == 8
    for key, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key


@pytest.mark.parametrize("name", METHODS)
def test_tiles_of_thirteen_bands(name):
    tiles = torch.rand(16, 13, 16, 16, generator=torch.Generator().manual_seed(1))
    method = METHODS[name](cnn(13), input_shape=(13, 12, 12))
    trainer = Trainer(steps=2, optimizer=partial(torch.optim.Adam, lr=1e-3))
    fit = pretrain(method, tiles, views=two_crops(), trainer=trainer, batch_size=8)
    assert all(math.isfinite(entry["loss"]) for entry in fit.history)
    assert pooled_features(method.backbone, tiles).shape == (16, 8)


@pytest.mark.parametrize(
    ("backbone", "shape", "dim"),
    [
        (lambda: ResNet((1, 1), (4, 8), in_channels=1, classes=3, stem="small"), (1, 16, 20), 8),
        (lambda: ViT((16, 16), 8, 12, 1, 2, in_channels=2), (2, 16, 16), 12),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(48, 5)), (3, 4, 4), 5),
        (lambda: nn.Conv3d(1, 6, 3), (1, 5, 6, 7), 6),
    ],
)
def test_the_length_of_features_is_found_by_a_dry_run(backbone, shape, dim):
    network = backbone()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert feature_dim(network, shape) == dim and network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    method = SimCLR(network, input_shape=shape, dim=4, pool="max")
    loss = method([torch.rand(3, *shape), torch.rand(3, *shape)])["loss"]
    loss.backward()
    assert method.backbone is network and torch.isfinite(loss)


def test_colours_are_refused_on_one_channel():
    with pytest.raises(ValueError, match="need 3 channels, got 1"):
        ColorJitter(0.4, 0.4, 0.2, 0.1)(torch.rand(2, 1, 8, 8), torch.Generator())


@pytest.mark.parametrize("name", METHODS)
def test_bad_input_is_named(name):
    with pytest.raises(ValueError, match=r"input_shape: the backbone does not take images of \(3, 12, 12\)"):
        METHODS[name](cnn(1), input_shape=(3, 12, 12))
    method = METHODS[name](cnn(), input_shape=(1, 12, 12))
    with pytest.raises(ValueError, match="views must be"):
        method(torch.rand(4, 1, 12, 12))
    with pytest.raises(ValueError, match="views must be"):
        method([torch.rand(4, 1, 12, 12)])


def test_other_bad_input_is_named():
    with pytest.raises(TypeError, match="backbone must give a tensor or feature maps, got str"):
        pooled_features(type("Odd", (nn.Module,), {"forward": lambda self, x: "no"})(), torch.rand(1, 1, 2, 2))
    with pytest.raises(ValueError, match="prototypes must be at least 2, got 1"):
        SwAV(cnn(), input_shape=(1, 12, 12), prototypes=1)
    with pytest.raises(ValueError, match="at least two samples"):
        w.simclr()([torch.rand(1, 1, 12, 12)] * 2)
    with pytest.raises(ValueError, match="a queue of 16 cannot take 17"):
        w.moco()([torch.rand(17, 1, 12, 12)] * 2)
