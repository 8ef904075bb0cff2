"""Whole networks made sparse: the dense network where all is visible, and no trace of what is hidden."""

import copy
import threading

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from flambeau.models.vision.convnext import ConvNeXt
from flambeau.models.vision.resnet import ResNet
from flambeau.nn.sparse import SparseContext, find_taps, record_taps, to_sparse
from flambeau.objectives.masking import random_cells


class BatchNormAct2d(nn.BatchNorm2d):
    """As timm's: norm and activation in one module."""

    def forward(self, x):
        return F.relu(super().forward(x), inplace=True)


class Gated(nn.Module):
    """A user's block: depth-wise and dilated convolutions, a gate from the pooled map, a residual connection."""

    def __init__(self, width, norm):
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 3, padding=2, dilation=2, groups=width)
        self.norm = norm(width)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.gate = nn.Sequential(nn.Conv2d(width, width, 1), nn.Sigmoid())
        self.drop = nn.Dropout(0.0)

    def forward(self, x):
        y = self.norm(self.depthwise(x))
        return x + self.drop(y * self.gate(self.pool(y)))


class UserNet(nn.Module):
    def __init__(self, norm=BatchNormAct2d):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 8, 3, 2, 1, bias=False), norm(8), nn.SiLU())
        self.stages = nn.ModuleList([nn.Sequential(Gated(8, norm), nn.AvgPool2d(2)), Gated(8, norm)])
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
        return self.head(x.amax((2, 3)))


class SamePadding(nn.Sequential):
    """As TensorFlow pads for a stride of 2, by a layer and by a function."""

    def __init__(self):
        stride = nn.Conv2d(2, 4, 3, 2, bias=False), nn.BatchNorm2d(4), nn.ReLU6()
        super().__init__(*stride, nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(4, 6, 3, 2))

    def forward(self, x):
        return super().forward(F.pad(x, (0, 1, 0, 1)))


class Volume(nn.Sequential):
    def __init__(self):
        layers = [nn.Conv3d(1, 4, 3, 2, 1), nn.BatchNorm3d(4), nn.ReLU(), nn.MaxPool3d(2), nn.Conv3d(4, 6, 3, 1, 1)]
        super().__init__(*layers, nn.GroupNorm(2, 6), nn.LeakyReLU())


def seeded(make):
    torch.manual_seed(0)
    return make()


NETWORKS = {  # network, channels, size, stride
    "resnet": (lambda: ResNet((1, 1, 1), (8, 12, 16), classes=5), 3, (32, 64), 16),
    "bottleneck": (lambda: ResNet((1, 1), (4, 8), bottleneck=True, in_channels=1, classes=5), 1, (32, 48), 8),
    "convnext": (lambda: ConvNeXt((1, 1), (8, 12), classes=5, layer_scale=1.0), 3, (32, 16), 8),
    "user": (UserNet, 1, (16, 24), 4),
    "group norm": (lambda: UserNet(lambda width: nn.GroupNorm(2, width)), 1, (16, 24), 4),
    "instance norm": (lambda: UserNet(lambda w: nn.InstanceNorm2d(w, 1e-5, 0.1, True, True)), 1, (16, 24), 4),
    "same padding": (SamePadding, 2, (16, 8), 4),
    "volume": (Volume, 1, (8, 16, 12), 4),
}


@pytest.fixture(params=NETWORKS)
def case(request):
    make, channels, size, stride = NETWORKS[request.param]
    network = seeded(make)
    grid = tuple(n // stride for n in size)
    return network, torch.randn(3, channels, *size, generator=torch.Generator().manual_seed(1)), grid, stride


def half(batch, grid, seed=0):
    cells = torch.Size(grid).numel()
    return random_cells(batch, grid, cells // 2, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("training", [True, False])
def test_with_all_cells_visible_it_is_the_dense_network(case, training):
    dense, x, grid, _ = case
    dense, x = dense.double().train(training), x.double()
    sparse = to_sparse(dense)
    with sparse.sparse_context(torch.ones(len(x), *grid, dtype=torch.bool)):
        ours = sparse(x)
    theirs = dense(x)
    torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=0)
    for name, value in dense.state_dict().items():
        torch.testing.assert_close(sparse.state_dict()[name], value, atol=1e-10, rtol=0)
    ours.square().sum().backward()
    theirs.square().sum().backward()
    for (name, a), b in zip(sparse.named_parameters(), dense.parameters()):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-8, rtol=1e-8, msg=name)


@pytest.mark.parametrize("training", [True, False])
def test_hidden_pixels_change_nothing_whatever_they_hold(case, training):
    dense, x, grid, stride = case
    mask = half(len(x), grid)
    hidden = ~mask[:, None]
    for axis in range(2, x.ndim):
        hidden = hidden.repeat_interleave(stride, axis)
    maps = []
    for other in (x, torch.where(hidden, torch.nan, x), torch.where(hidden, 1e30, x)):
        sparse = to_sparse(dense).train(training)
        names = [tap.name for tap in find_taps(sparse, x.shape[1], x.shape[2:])]
        record_taps(sparse, names, sparse.sparse_context)
        with sparse.sparse_context(mask) as active:
            maps.append([sparse(other), *(active.features[name] for name in names)])
    for first, second, third in zip(*maps):
        assert torch.equal(first, second) and torch.equal(first, third) and first.isfinite().all()
    for feature in maps[0][1:]:
        assert not feature.masked_fill(active.visible(feature.shape[2:]), 0).any() and feature.any()


def test_hidden_pixels_stay_out_by_every_entrance():
    sparse = to_sparse(seeded(lambda: ResNet((1, 1), (8, 12)))).eval()
    mask, x = half(2, (4, 4)), torch.randn(2, 3, 32, 32)
    hidden = ~mask[:, None].repeat_interleave(8, 2).repeat_interleave(8, 3)
    with sparse.sparse_context(mask):
        maps, others = sparse.stages(x), sparse.stages(x.masked_fill(hidden, torch.nan))
    assert all(torch.equal(maps[name], others[name]) for name in maps)


def test_no_gradient_reaches_hidden_pixels(case):
    dense, x, grid, stride = case
    mask = half(len(x), grid)
    visible = mask[:, None]
    for axis in range(2, x.ndim):
        visible = visible.repeat_interleave(stride, axis)
    x.requires_grad_()
    sparse = to_sparse(dense).eval()
    with sparse.sparse_context(mask):
        sparse(x).square().sum().backward()
    assert not x.grad.masked_fill(visible, 0).any() and x.grad.any()


def test_outside_a_context_it_is_dense_and_its_state_that_of_the_dense_network(case):
    dense, x, grid, _ = case
    sparse = to_sparse(dense)
    with sparse.sparse_context(half(len(x), grid)):
        sparse(x)  # moves the running statistics
    sparse.eval()
    again = copy.deepcopy(dense)
    again.load_state_dict(sparse.state_dict(), strict=True)
    assert torch.equal(again.eval()(x), sparse(x))
    assert type(dense) is not type(sparse) and isinstance(sparse, type(dense))


def test_away_from_the_borders_of_cells_the_mask_does_not_matter():
    torch.manual_seed(0)
    conv = nn.Conv2d(2, 3, 3, padding=1)
    sparse, x = to_sparse(conv), torch.randn(4, 2, 24, 24)
    outputs = []
    for keep in (3, 9, 15):
        mask = random_cells(4, (4, 4), keep, torch.Generator().manual_seed(keep))
        with sparse.sparse_context(mask) as active:
            outputs.append((sparse(x), active.visible((24, 24))))
    inner = torch.zeros(24, 24, dtype=torch.bool)
    for row in range(0, 24, 6):
        for column in range(0, 24, 6):
            inner[row + 1 : row + 5, column + 1 : column + 5] = True
    for y, visible in outputs:
        both = (visible & inner).expand_as(y)
        assert torch.equal(y[both], conv(x)[both])
    assert not torch.equal(outputs[0][0], outputs[2][0])


def test_networks_in_threads_and_within_each_other_keep_their_masks():
    sparse = to_sparse(seeded(UserNet).eval())
    x = torch.randn(2, 1, 16, 24)
    masks = [half(2, (4, 6), seed) for seed in range(2)]

    def run(mask):
        with sparse.sparse_context(mask):
            return sparse(x)

    alone, results, barrier = [run(mask) for mask in masks], {}, threading.Barrier(2)

    def work(number):
        for turn in range(20):
            barrier.wait()
            results[number, turn] = run(masks[number])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(value, alone[number]) for (number, _), value in results.items()) and len(results) == 40
    assert not torch.equal(*alone)

    inner = to_sparse(seeded(UserNet).eval())
    with sparse.sparse_context(masks[0]):
        with inner.sparse_context(masks[1]), sparse.sparse_context(masks[1]):
            assert torch.equal(sparse(x), alone[1]) and torch.equal(inner(x), alone[1])
        assert torch.equal(sparse(x), alone[0])
        assert torch.equal(inner(x), seeded(UserNet).eval()(x))
    twin = copy.deepcopy(sparse)
    assert twin.sparse_context is not sparse.sparse_context and twin.stem[0].sparse_context is twin.sparse_context
    with twin.sparse_context(masks[0]):
        assert torch.equal(twin(x), alone[0])


def test_networks_can_share_a_context():
    context = SparseContext()
    first, second = to_sparse(nn.Conv2d(1, 1, 3, padding=1), context), to_sparse(nn.BatchNorm2d(1), context)
    assert first.sparse_context is second.sparse_context is context


def test_layers_without_a_sparse_counterpart_are_named():
    class Spatial(nn.Module):
        def __init__(self):
            super().__init__()
            self.gain = nn.Parameter(torch.ones(4))

        def forward(self, x):
            return x / (1 + x.norm(dim=(2, 3), keepdim=True)) * self.gain[:, None, None]

    conv = nn.Conv2d(1, 4, 3)
    for layer, kind in [
        (nn.ConvTranspose2d(4, 4, 2, 2), "ConvTranspose2d"),
        (nn.Conv1d(4, 4, 3), "Conv1d"),
        (nn.Upsample(scale_factor=2), "Upsample"),
        (nn.PixelShuffle(2), "PixelShuffle"),
        (nn.MultiheadAttention(4, 1), "MultiheadAttention"),
        (nn.LayerNorm([4, 8, 8]), "LayerNorm"),
        (nn.MaxPool2d(2, return_indices=True), "MaxPool2d"),
        (nn.LazyConv2d(4, 3), "LazyConv2d"),
        (nn.LocalResponseNorm(2), "LocalResponseNorm"),
        (Spatial(), "Spatial"),
    ]:
        with pytest.raises(TypeError, match=rf"layer '1\.0' \({kind}\)"):
            to_sparse(nn.Sequential(conv, nn.Sequential(layer)))
    with pytest.raises(ValueError, match="sparse already"):
        to_sparse(to_sparse(conv))


def test_taps_are_the_stages():
    resnet = ResNet((1, 1, 1, 1), (4, 6, 8, 10))
    assert [(tap.name, tap.stride, tap.channels) for tap in find_taps(resnet, 3, (64, 32))] == [
        ("relu", 2, 4), ("layer1", 4, 4), ("layer2", 8, 6), ("layer3", 16, 8), ("layer4", 32, 10),
    ]  # fmt: skip
    convnext = ConvNeXt((1, 1, 1), (4, 6, 8))
    assert [tap.name for tap in find_taps(convnext, 3, (64, 64))][:2] == ["features.1", "features.3"]
    named = find_taps(resnet.train(), 3, (64, 64), ["layer3", "layer1.0.conv2"])
    assert [(tap.name, tap.stride) for tap in named] == [("layer1.0.conv2", 4), ("layer3", 16)]
    assert resnet.training and not resnet.bn1.num_batches_tracked
    with pytest.raises(ValueError, match="no module 'layer9'"):
        find_taps(resnet, 3, (64, 64), ["layer9"])
    with pytest.raises(ValueError, match="'fc' gives no feature map"):
        find_taps(resnet, 3, (64, 64), ["fc"])
    with pytest.raises(ValueError, match="different resolutions"):
        find_taps(resnet, 3, (64, 64), ["layer1", "maxpool"])
    with pytest.raises(ValueError, match="48 x 40 is not divisible by the network's stride, 32"):
        find_taps(resnet, 3, (48, 40))
    with pytest.raises(ValueError, match="power of two"):
        find_taps(nn.Sequential(nn.Conv2d(1, 2, 3, 3)), 1, (48, 48))
    with pytest.raises(ValueError, match="the same along all axes"):
        find_taps(nn.Sequential(nn.Conv2d(1, 2, 2, (2, 1))), 1, (48, 48))
