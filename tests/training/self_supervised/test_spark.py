"""SparK: what is masked, what is learnt from, and what is given back."""

import copy
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
import spark_workers as w

from flambeau.models.vision.convnext import ConvNeXt
from flambeau.models.vision.resnet import ResNet
from flambeau.objectives.masking import random_cells
from flambeau.objectives.reconstruction import normalise_patches, patchify, unpatchify
from flambeau.training.parallel import run_processes
from flambeau.training.self_supervised.spark import SparK, spark_visualise


def stage(before, width):
    return nn.Sequential(nn.Conv2d(before, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True))


class Net(nn.Module):
    def __init__(self, channels=1):
        super().__init__()
        self.stages = nn.Sequential(stage(channels, 8), stage(8, 12), stage(12, 16))
        self.head = nn.Linear(16, 4)

    def forward(self, x):
        return self.head(self.stages(x).amax((2, 3)))


def spark(encoder=None, size=(48, 48), ratio=0.6, **options):
    torch.manual_seed(0)
    return SparK(Net() if encoder is None else encoder, size, ratio, **{"decoder_width": 16, **options})


def images(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def cells(batch, grid, keep, seed=0):
    return random_cells(batch, grid, keep, torch.Generator().manual_seed(seed))


def pixels(mask, side):
    mask = mask[:, None]
    for axis in range(2, mask.ndim):
        mask = mask.repeat_interleave(side, axis)
    return mask


def test_mask_has_the_papers_number_of_visible_cells():
    model = spark()
    assert model.keep((48, 48)) == 14  # round(36 x .4); 224 pixels at stride 32: round(49 x .4) = 20
    assert spark(ResNet((1, 1, 1, 1), (4, 4, 4, 4)), (224, 224), decoder_width=32).keep((224, 224)) == 20
    torch.manual_seed(1)
    first, second = (model(images(5, 1, 48, 48))["mask"] for _ in range(2))
    assert first.shape == (5, 6, 6) and first.dtype == torch.bool
    assert first.flatten(1).sum(1).tolist() == [14] * 5
    assert not torch.equal(first, second) and len({row.tobytes() for row in first.flatten(1).numpy()}) == 5


@pytest.mark.parametrize("training", [True, False])
def test_encoder_sees_nothing_of_hidden_cells(training):
    model = spark().train(training)
    mask = cells(3, (6, 6), 14)
    x = images(3, 1, 48, 48)
    hidden = ~pixels(mask, 8)
    state = copy.deepcopy(model.state_dict())
    outputs = []
    for other in (x, torch.where(hidden, images(3, 1, 48, 48, seed=1), x), torch.where(hidden, torch.inf, x)):
        model.load_state_dict(state)
        outputs.append(model(other, mask)["reconstruction"])
    assert torch.equal(outputs[0], outputs[1]) and torch.equal(outputs[0], outputs[2])
    x.requires_grad_()
    model(x, mask)["reconstruction"].square().sum().backward()
    assert not x.grad.masked_fill(~hidden, 0).any() and x.grad.any()


def test_loss_is_the_error_of_hidden_cells_normalised_one_by_one():
    model = spark().eval()
    x, mask = images(3, 1, 48, 48), cells(3, (6, 6), 14)
    output = model(x, mask)
    predicted = output["reconstruction"].unfold(2, 8, 8).unfold(3, 8, 8)[:, 0]  # [batch, 6, 6, 8, 8]
    target = x.unfold(2, 8, 8).unfold(3, 8, 8)[:, 0]
    mean, variance = target.mean((3, 4), keepdim=True), target.var((3, 4), keepdim=True)
    errors = (predicted - (target - mean) / (variance + 1e-6).sqrt()).square().mean((3, 4))
    torch.testing.assert_close(output["loss"], errors[~mask].mean())

    output["reconstruction"].retain_grad()
    output["loss"].backward()
    gradient = output["reconstruction"].grad
    assert not gradient.masked_fill(~pixels(mask, 8), 0).any()
    assert gradient.masked_fill(pixels(mask, 8), 1).all()


def test_a_visible_cell_is_no_part_of_the_loss():
    model = spark().eval()
    x, mask = images(2, 1, 48, 48), cells(2, (6, 6), 14)
    with torch.no_grad():
        kept = model(x, mask)
        model.decoder = Shifted(model.decoder, 100.0 * pixels(mask, 8))
        assert torch.equal(model(x, mask)["loss"], kept["loss"])
        model.decoder = Shifted(model.decoder, 0.1 * ~pixels(mask, 8))
        assert not torch.equal(model(x, mask)["loss"], kept["loss"])


class Shifted(nn.Module):
    def __init__(self, decoder, shift):
        super().__init__()
        self.decoder, self.shift, self.blocks = decoder, shift, decoder.blocks

    def forward(self, features):
        return self.decoder(features) + self.shift


def test_patches_and_the_target_of_a_constant_one():
    x = images(2, 3, 16, 24)
    assert torch.equal(unpatchify(patchify(x, 8), 8, (16, 24)), x)
    assert not normalise_patches(patchify(torch.full((1, 2, 8, 8), 3.0), 8)).any()


@pytest.mark.parametrize(
    "encoder, size, scales",
    [
        (lambda: ResNet((1, 1, 1), (4, 6, 8), in_channels=2), (32, 64), [16, 8, 4, 2]),
        (lambda: ConvNeXt((1, 1, 1), (4, 6, 16), in_channels=1), (48, 32), [16, 8, 4]),
        (lambda: volume(), (8, 16, 8), [4, 2]),
    ],
    ids=["resnet", "convnext", "volume"],
)
def test_other_encoders_sizes_and_volumes(encoder, size, scales):
    dense = encoder()
    model = spark(dense, size)
    assert [tap.stride for tap in model.taps] == scales
    x = images(2, model.channels, *size)
    output = model(x)
    assert output["reconstruction"].shape == x.shape and output["mask"].shape[1:] == tuple(n // scales[0] for n in size)
    output["loss"].backward()
    ours = [p for name, p in model.named_parameters() if not name.startswith(("backbone.fc", "backbone.classifier"))]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in ours)
    larger = [2 * n for n in size]
    assert model(images(1, model.channels, *larger))["reconstruction"].shape[2:] == tuple(larger)


def volume():
    return nn.Sequential(
        nn.Conv3d(1, 4, 3, 2, 1), nn.BatchNorm3d(4), nn.ReLU(), nn.Conv3d(4, 6, 3, 2, 1), nn.BatchNorm3d(6), nn.ReLU()
    )


def test_encoders_of_transformers():
    hub = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_sizes": [8, 12, 16], "depths": [1, 1, 1]}
    for encoder, taps in [
        (hub.ConvNextModel(hub.ConvNextConfig(num_stages=3, layer_scale_init_value=1.0, **sizes)), "encoder.stages"),
        (hub.RegNetModel(hub.RegNetConfig(embedding_size=8, groups_width=4, **sizes)), "encoder.stages"),
    ]:
        model = spark(encoder, (64, 32))
        assert [tap.name for tap in model.taps][:2] == [f"{taps}.2", f"{taps}.1"]
        assert model(images(2, 3, 64, 32))["loss"].isfinite()
        encoder.load_state_dict(model.encoder_state(), strict=True)


@pytest.mark.parametrize("encoder", [ResNet, ConvNeXt])
def test_mixed_precision(encoder):
    model = spark(encoder((1, 1), (4, 6)), (32, 32))
    x, mask = images(4, 3, 32, 32), cells(4, (4, 4), 6)
    expected = model.eval()(x, mask)["loss"]
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(x, mask)["loss"]
    loss.backward()
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(expected.item(), rel=0.02)


def test_taps_by_name():
    model = spark(taps=["stages.0", "stages.2"])
    assert [tap.name for tap in model.taps] == ["stages.2", "stages.0"]
    model(images(2, 1, 48, 48))["loss"].backward()


def test_identity_where_the_coarsest_feature_has_the_decoders_width():
    assert isinstance(spark().projections[0], nn.Identity)
    assert spark(decoder_width=32).projections[0].kernel_size == (1, 1)
    assert spark().projections[1].kernel_size == (3, 3)


def test_encoder_state_is_that_of_the_dense_network():
    dense = Net()
    model = spark(dense)
    optimizer = torch.optim.Adam(model.parameters())
    model(images(4, 1, 48, 48))["loss"].backward()
    optimizer.step()
    again = Net()
    again.load_state_dict(model.encoder_state(), strict=True)
    x = images(2, 1, 48, 48)
    assert torch.equal(again.eval()(x), model.eval().backbone(x))
    assert not torch.equal(again.stages[0][0].weight, dense.stages[0][0].weight)
    assert not torch.equal(again.stages[0][1].running_mean, dense.stages[0][1].running_mean)


def test_it_learns_better_than_the_mean_of_each_cell():
    model = spark(decoder_width=32)
    phase = torch.rand(64, 2, 1, 1, generator=torch.Generator().manual_seed(0)) * 6
    place = torch.arange(48.0)
    x = (torch.sin(place[:, None] / 3 + phase[:, :1]) + torch.sin(place[None] / 4 + phase[:, 1:])).view(64, 1, 48, 48)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for step in range(60):
        loss = model(x[step % 4 * 16 :][:16])["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    mask = cells(64, (6, 6), 14)
    with torch.no_grad():
        assert model.eval()(x, mask)["loss"] < 0.6  # 1 is the mean of each cell


def test_visualise_gives_predictions_the_scale_of_the_image():
    model = spark().eval()
    x, mask = 5 + 3 * images(2, 1, 48, 48), cells(2, (6, 6), 14)
    visible = pixels(mask, 8)
    masked, completed = spark_visualise(model, x, mask)
    assert torch.equal(masked, x * visible)
    assert torch.equal(completed[visible], x[visible])

    class Perfect(nn.Module):
        blocks = model.decoder.blocks

        def forward(self, features):
            return unpatchify(normalise_patches(patchify(x, 8)), 8, (48, 48))

    model.decoder = Perfect()
    assert model(x, mask)["loss"] < 1e-9
    torch.testing.assert_close(spark_visualise(model, x, mask)[1], x)


def test_bad_input():
    with pytest.raises(ValueError, match="50 x 48 is not divisible by the network's stride, 8"):
        spark(size=(50, 48))
    with pytest.raises(ValueError, match="power of two"):
        spark(nn.Sequential(nn.Conv2d(1, 4, 3, 3), nn.ReLU()), (48, 48))
    for ratio, left in [(0.001, 36), (0.999, 0)]:
        with pytest.raises(ValueError, match=f"mask_ratio .* leaves {left} of 36 cells visible"):
            spark(ratio=ratio)
    for ratio in (0.0, 1.0, float("nan")):
        with pytest.raises(ValueError, match="mask_ratio must lie in"):
            spark(ratio=ratio)
    with pytest.raises(TypeError, match=r"layer '1' \(Upsample\)"):
        spark(nn.Sequential(nn.Conv2d(1, 4, 3, 2, 1), nn.Upsample(scale_factor=2)))
    with pytest.raises(ValueError, match="has no convolution"):
        spark(nn.Linear(4, 4))
    with pytest.raises(ValueError, match="input_size must have 2 or 3 axes"):
        spark(size=(48,))
    with pytest.raises(ValueError, match="width must be a multiple of the stride 8"):
        spark(decoder_width=20)
    with pytest.raises(ValueError, match="resolution of the image"):
        spark(nn.Sequential(nn.Conv2d(1, 2, 3, 1, 1), nn.Sequential(nn.Conv2d(2, 2, 3, 2, 1))), decoder_width=8)

    class Mixing(nn.Sequential):
        def forward(self, x):
            return super().forward(x).roll(1, 2)

    with pytest.raises(ValueError, match="output of '0' is not 0 where the input is hidden"):
        spark(nn.Sequential(Mixing(nn.Conv2d(1, 4, 3, 2, 1), nn.ReLU())))

    model = spark()
    with pytest.raises(ValueError, match="50 x 48 pixels is not divisible"):
        model(images(2, 1, 50, 48))
    with pytest.raises(ValueError, match=r"x must be \[batch, 1"):
        model(images(2, 3, 48, 48))
    mask = cells(2, (6, 6), 14)
    for bad, message in [
        (mask[:, :5], r"mask must be boolean \[2, 6, 6\]"),
        (mask.float(), r"mask must be boolean \[2, 6, 6\]"),
        (torch.ones_like(mask), "got 72 of 72 visible"),
        (torch.zeros_like(mask), "got 0 of 72 visible"),
    ]:
        with pytest.raises(ValueError, match=message):
            model(images(2, 1, 48, 48), bad)
    one = torch.zeros(1, 6, 6, dtype=torch.bool)
    one[0, 2, 3] = True
    with pytest.raises(ValueError, match="batch norm got one visible position"):
        model(images(1, 1, 48, 48), one)


def test_it_trains_in_two_processes(tmp_path):
    first, second = run_processes(w.fits, 2, str(tmp_path))
    alone = w.fit(None, tmp_path / "alone")
    for plan in ("dp2", "fsdp2"):
        assert first[plan]["losses"] == second[plan]["losses"] and len(first[plan]["losses"]) == 4
        assert first[plan]["same"] and first[plan]["dense"]
        for name, value in first[plan]["weights"].items():
            assert value.isfinite().all() and value.shape == alone["weights"][name].shape
            assert torch.equal(value, second[plan]["weights"][name])
        started = w.model().state_dict()["backbone.0.weight"]
        assert not torch.equal(first[plan]["weights"]["backbone.0.weight"], started)
    # Batch norm sees the visible positions of its own process, and the masks are others: near, but not equal.
    assert first["dp2"]["losses"] == pytest.approx(alone["losses"], rel=0.1)
