"""Sparse layers against explicit gather and scatter, and against the dense layers on what is visible."""

import itertools
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from flambeau.models.vision.convnext import LayerNorm2d
from flambeau.nn.sparse import ActiveCells, SparseContext, to_sparse
from flambeau.objectives.masking import random_cells


def mask_of(*grid, keep, batch=2, seed=0):
    return random_cells(batch, grid, keep, torch.Generator().manual_seed(seed))


def expanded(mask, side):
    for axis in range(1, mask.ndim):
        mask = mask.repeat_interleave(side, axis)
    return mask


def submanifold(x, visible, conv):
    """Convolution by a table of active sites: gather the active neighbours of each active output, multiply, scatter.

    x: [batch, in, *size]; visible: boolean [batch, *size]. Returns the output and its active sites.
    """
    axes = x.ndim - 2
    kernel, stride, padding, dilation = conv.kernel_size, conv.stride, conv.padding, conv.dilation
    sizes = [
        (n + 2 * padding[a] - dilation[a] * (kernel[a] - 1) - 1) // stride[a] + 1 for a, n in enumerate(x.shape[2:])
    ]
    cell = [n // m for n, m in zip(x.shape[2:], sizes)]
    active = visible[(slice(None), *[slice(None, None, c) for c in cell])]
    y = torch.zeros(len(x), conv.out_channels, *sizes)
    values = {tuple(site): x[(site[0], slice(None), *site[1:])] for site in visible.nonzero().tolist()}
    per_group = conv.in_channels // conv.groups
    for site in active.nonzero().tolist():
        total = torch.zeros(conv.out_channels) if conv.bias is None else conv.bias.clone()
        for offset in itertools.product(*[range(k) for k in kernel]):
            source = [site[1 + a] * stride[a] - padding[a] + offset[a] * dilation[a] for a in range(axes)]
            value = values.get((site[0], *source))
            if value is not None:
                weight = conv.weight[(slice(None), slice(None), *offset)]  # [out, in / groups]
                grouped = value.view(conv.groups, per_group)
                total = total + torch.einsum("goi,gi->go", weight.view(conv.groups, -1, per_group), grouped).flatten()
        y[(site[0], slice(None), *site[1:])] = total
    return y, active


CONVS = {
    "3x3": (nn.Conv2d(3, 4, 3, padding=1), (2, 3), 4),
    "strided": (nn.Conv2d(3, 4, 3, 2, 1), (3, 2), 4),
    "dilated": (nn.Conv2d(3, 4, 3, padding=2, dilation=2), (2, 3), 4),
    "depth-wise": (nn.Conv2d(4, 4, 5, padding=2, groups=4, bias=False), (3, 3), 2),
    "grouped": (nn.Conv2d(4, 6, 3, padding=1, groups=2), (2, 2), 4),
    "1x1": (nn.Conv2d(3, 4, 1, bias=False), (2, 3), 2),
    "1x1 strided": (nn.Conv2d(3, 4, 1, 2), (2, 3), 2),
    "1x1 volume": (nn.Conv3d(3, 4, 1, (2, 1, 1)), (2, 1, 3), 2),
    "volume": (nn.Conv3d(2, 3, 3, 2, 1), (2, 1, 3), 2),
}


@pytest.mark.parametrize("few", [True, False])  # on both sides of what decides whether 1x1 convolutions gather
@pytest.mark.parametrize("name", CONVS)
@torch.no_grad()
def test_a_convolution_is_the_submanifold_one(name, few):
    conv, grid, side = CONVS[name]
    cells = torch.Size(grid).numel()
    mask = mask_of(*grid, keep=max(1, cells // 3)) if few else torch.ones(2, *grid, dtype=torch.bool)
    if not few:
        mask[0].view(-1)[1] = False
    visible = expanded(mask, side)
    x = torch.randn(2, conv.in_channels, *visible.shape[1:], generator=torch.Generator().manual_seed(1))
    sparse = to_sparse(conv)
    with sparse.sparse_context(mask):
        y = sparse(x)
    expected, active = submanifold(x, visible, conv)
    torch.testing.assert_close(y, expected, atol=1e-5, rtol=0)
    assert not y.movedim(1, -1)[~active].any() and y.movedim(1, -1)[active].any()


@torch.no_grad()
def test_a_subclass_keeps_its_own_forward():
    class Standardised(nn.Conv2d):
        def forward(self, x):
            weight = (self.weight - self.weight.mean((1, 2, 3), keepdim=True)) / self.weight.std(
                (1, 2, 3), keepdim=True
            )
            return self._conv_forward(x, weight, self.bias)

    mask, x = mask_of(2, 3, keep=2), torch.randn(2, 3, 4, 6)
    visible = expanded(mask, 2)
    for conv in (Standardised(3, 4, 1), nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 1))):
        sparse = to_sparse(conv)
        with sparse.sparse_context(mask):
            y = sparse(x).movedim(1, -1)
        torch.testing.assert_close(y[visible], conv(x).movedim(1, -1)[visible])
        assert not y[~visible].any()


@torch.no_grad()
def test_a_stack_of_convolutions_is_the_submanifold_one():
    torch.manual_seed(0)
    stack = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 5, 3, 2, 1), nn.GELU(), nn.Conv2d(5, 3, 3, padding=1)
    )
    mask = mask_of(3, 2, keep=3)
    x, visible = torch.randn(2, 1, 12, 8), expanded(mask, 4)
    sparse = to_sparse(stack)
    with sparse.sparse_context(mask):
        y = sparse(x)
    for layer in stack:
        if isinstance(layer, nn.Conv2d):
            x, visible = submanifold(x, visible, layer)
        else:
            x = layer(x)
    torch.testing.assert_close(y, x, atol=1e-5, rtol=0)
    assert not y.movedim(1, -1)[~visible].any()


@pytest.mark.parametrize("dims", [2, 3])
def test_batch_norm_has_the_statistics_of_visible_positions(dims):
    torch.manual_seed(0)
    norm = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}[dims](5)
    mask = mask_of(*[2, 3, 2][:dims], keep=2)
    x = 3 + 2 * torch.randn(2, 5, *expanded(mask, 4).shape[1:])
    sparse = to_sparse(norm)
    with sparse.sparse_context(mask):
        y = sparse(x)
    rows = x.movedim(1, -1)[expanded(mask, 4)]
    torch.testing.assert_close(sparse.running_mean, 0.1 * rows.mean(0), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(sparse.running_var, 0.9 + 0.1 * rows.var(0), atol=1e-6, rtol=1e-6)
    expected = (rows - rows.mean(0)) / (rows.var(0, unbiased=False) + norm.eps).sqrt()
    torch.testing.assert_close(y.movedim(1, -1)[expanded(mask, 4)], expected, atol=1e-5, rtol=0)
    assert not y.movedim(1, -1)[~expanded(mask, 4)].any()
    assert sparse.num_batches_tracked == 1


@torch.no_grad()
def test_synchronised_batch_norm_is_one_batch_norm():
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(5)
    norm(torch.randn(4, 5, 3, 3))
    synchronised = to_sparse(nn.SyncBatchNorm.convert_sync_batchnorm(norm)).eval()  # training it takes a GPU
    mask, x = mask_of(2, 3, keep=2), torch.randn(2, 5, 8, 12)
    visible = expanded(mask, 4)
    with synchronised.sparse_context(mask):
        y = synchronised(x).movedim(1, -1)
    torch.testing.assert_close(y[visible], norm.eval()(x).movedim(1, -1)[visible])
    assert isinstance(synchronised, nn.SyncBatchNorm) and not y[~visible].any()


@pytest.mark.parametrize("layer", [nn.BatchNorm2d(3), nn.Conv2d(3, 2, 1), nn.GroupNorm(1, 3), nn.Linear(3, 2)])
def test_gradients_twice(layer):
    mask, sparse = mask_of(2, 2, keep=2), to_sparse(nn.Sequential(nn.Identity(), layer.double()))
    x = torch.randn(2, 3, 4, 4, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    x = x.movedim(1, -1) if isinstance(layer, nn.Linear) else x

    def function(x):
        with sparse.sparse_context(mask):
            return sparse[1](x)

    assert torch.autograd.gradcheck(function, x.requires_grad_())
    assert torch.autograd.gradgradcheck(function, x)


@pytest.mark.parametrize("unequal", [False, True])
@pytest.mark.parametrize(
    "norm",
    [nn.GroupNorm(2, 4), nn.InstanceNorm2d(4, affine=True), nn.InstanceNorm2d(4)],
    ids=["group", "affine", "instance"],
)
def test_group_and_instance_norm_are_those_of_each_samples_visible_positions(norm, unequal):
    torch.manual_seed(0)
    mask = mask_of(3, 2, keep=3)
    if unequal:
        mask[0, 0, 0] = ~mask[0, 0, 0]
    x = 1 + torch.randn(2, 4, 6, 4)
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    sparse = to_sparse(norm)
    with sparse.sparse_context(mask):
        y = sparse(x)
    for sample, image, visible in zip(y, x, expanded(mask, 2)):
        expected = norm(image[:, visible][None, :, :, None])[0, :, :, 0]
        torch.testing.assert_close(sample[:, visible], expected, atol=1e-5, rtol=0)
        assert not sample[:, ~visible].any()


class ConvNeXtAuthorsNorm(nn.Module):
    def __init__(self, channels, data_format):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(channels)), nn.Parameter(torch.randn(channels))
        self.normalized_shape, self.data_format = (channels,), data_format

    def forward(self, x):
        if self.data_format == "channels_last":
            return F.layer_norm(x, self.normalized_shape, self.weight, self.bias)
        return F.layer_norm(x.movedim(1, -1), self.normalized_shape, self.weight, self.bias).movedim(-1, 1)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("own", [False, True])
def test_layer_norm_is_that_of_each_visible_position(channels_last, own):
    torch.manual_seed(0)
    if own:
        norm = ConvNeXtAuthorsNorm(6, "channels_last" if channels_last else "channels_first")
    else:
        norm = nn.LayerNorm(6) if channels_last else LayerNorm2d(6)
    nn.init.normal_(norm.bias)
    mask = mask_of(2, 3, keep=2)
    x = torch.randn(2, 8, 12, 6) if channels_last else torch.randn(2, 6, 8, 12)
    sparse = to_sparse(nn.Sequential(nn.Identity(), norm))
    # The container takes [batch, channels, *size]; the norm inside it is called as a ConvNeXt block would.
    with sparse.sparse_context(mask):
        y, dense = sparse[1](x), norm(x)
    if not channels_last:
        y, dense = y.movedim(1, -1), dense.movedim(1, -1)
    visible = expanded(mask, 4)
    assert torch.equal(y[visible], dense[visible]) and not y[~visible].any()


@pytest.mark.parametrize("few", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_layer_is_that_of_each_visible_position(few, bias):
    torch.manual_seed(0)
    linear = nn.Linear(5, 7, bias=bias)
    sparse = to_sparse(nn.Sequential(nn.Identity(), linear))
    mask = mask_of(2, 3, keep=2 if few else 5)
    visible = expanded(mask, 2)
    x = (torch.randn(2, 4, 6, 5) * visible[..., None]).requires_grad_()
    with sparse.sparse_context(mask):
        y = sparse[1](x)
    torch.testing.assert_close(y[visible], linear(x)[visible], atol=1e-6, rtol=0)
    assert not y[~visible].any()
    weights = torch.randn_like(y)
    (y * weights).sum().backward()
    torch.testing.assert_close(x.grad[visible], (weights @ linear.weight)[visible], atol=1e-6, rtol=0)
    assert torch.equal(sparse[1](x[0, 0, :2].detach()), linear(x[0, 0, :2].detach()))  # a head outside of positions


def test_only_pointwise_layers_save_multiplications():
    """A 1x1 convolution multiplies visible positions only; what has neighbours is computed everywhere, then masked."""
    mask, x = mask_of(5, 2, keep=3), torch.randn(2, 4, 10, 4)

    def multiplications(layer, sparse):
        with FlopCounterMode(display=False) as counter, layer.sparse_context(mask) if sparse else nullcontext():
            layer(x)
        return counter.get_total_flops()

    pointwise, wide = to_sparse(nn.Conv2d(4, 8, 1)), to_sparse(nn.Conv2d(4, 8, 3, padding=1))
    assert multiplications(pointwise, True) == 0.3 * multiplications(pointwise, False) > 0
    assert multiplications(wide, True) == multiplications(wide, False) > 0


def test_pools():
    mask = mask_of(2, 3, keep=2)
    x = torch.randn(2, 4, 8, 12) - 1
    visible = expanded(mask, 4)
    for pool, expected in [
        (nn.AdaptiveAvgPool2d(1), [image[:, v].mean(1) for image, v in zip(x, visible)]),
        (nn.AdaptiveMaxPool2d((1, 1)), [image[:, v].amax(1) for image, v in zip(x, visible)]),
    ]:
        sparse = to_sparse(nn.Sequential(pool, nn.Flatten()))
        with sparse.sparse_context(mask):
            torch.testing.assert_close(sparse(x), torch.stack(expected), atol=1e-6, rtol=0)
    hidden = x * visible[:, None]
    whole = to_sparse(nn.AvgPool2d((8, 12)))  # a head: one position for the image
    with whole.sparse_context(mask):
        torch.testing.assert_close(whole(x), hidden.mean((2, 3), keepdim=True))
    for pool, size in [(nn.MaxPool2d(3, 2, 1), 2), (nn.AvgPool2d(2), 2), (nn.AdaptiveAvgPool2d((2, 3)), 1)]:
        sparse = to_sparse(pool)
        with sparse.sparse_context(mask):
            torch.testing.assert_close(sparse(x), pool(hidden) * expanded(mask, size)[:, None], atol=1e-6, rtol=0)


def test_positions_are_the_indices_of_the_mask():
    for mask, sizes in [(mask_of(2, 3, keep=2), [(8, 12), (2, 3), (2, 6)]), (mask_of(2, 1, 3, keep=4), [(4, 3, 6)])]:
        active = ActiveCells(mask)
        for size in sizes:
            by_mask = active.visible(size).flatten().nonzero().flatten()
            assert torch.equal(active.positions(size).sort().values, by_mask)
            sample = active.positions(size) // torch.Size(size).numel()
            assert torch.equal(sample, sample.sort().values)
            assert active.counts(size) == sample.bincount(minlength=2).tolist()


def test_one_visible_position_has_no_variance():
    x = torch.randn(1, 3, 2, 2)
    mask = torch.tensor([[[True, False], [False, False]]])
    for norm in (nn.BatchNorm2d(3), nn.InstanceNorm2d(3)):
        sparse = to_sparse(nn.Sequential(norm))
        with sparse.sparse_context(mask), pytest.raises(ValueError, match=r"layer '0' .*one visible position"):
            sparse(x)
    sparse = to_sparse(nn.BatchNorm2d(3)).eval()
    with sparse.sparse_context(mask):
        assert sparse(x)[:, :, 0, 0].any()


def test_maps_that_do_not_fit_are_named():
    sparse = to_sparse(nn.Sequential(nn.Conv2d(3, 4, 4), nn.ReLU()))
    with sparse.sparse_context(mask_of(2, 2, keep=1)):
        with pytest.raises(ValueError, match=r"layer '0' \(Conv2d\): a map of 5 x 5 positions .* 2 x 2 cells"):
            sparse(torch.randn(2, 3, 8, 8))
        with pytest.raises(ValueError, match="got 3 samples, the mask is for 2"):
            sparse(torch.randn(3, 3, 8, 8))
        with pytest.raises(ValueError, match="the input of Sequential: a map of 7 x 8"):
            sparse(torch.randn(2, 3, 7, 8))
    with sparse.sparse_context(mask_of(2, 2, 2, keep=1)), pytest.raises(ValueError, match="3 spatial axes"):
        sparse(torch.randn(2, 3, 8, 8))


def test_masks_that_are_none():
    context = SparseContext()
    for mask, message in [
        (torch.ones(2, 4), "mask must be boolean"),
        (torch.ones(2, 4, 4), "mask must be boolean"),
        (torch.zeros(2, 4, 4, dtype=torch.bool), "hides all 32 cells"),
    ]:
        with pytest.raises(ValueError, match=message), context(mask):
            pass
    assert context.active is None
