"""What a layer does when some positions are hidden. Each class is mixed into the layer's own class.

Convolutions and pools are the dense operation with hidden outputs set to 0, which on maps whose hidden inputs are 0 is
the submanifold sparse convolution (Graham et al. 2018, arXiv 1711.10275); norms take their statistics from visible
positions (Tian et al. 2023, arXiv 2301.03580, section 3.2).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.instancenorm import _InstanceNorm

from flambeau.nn.sparse.context import ActiveCells, SparseContext

# Visible share up to which moving rows pays: forward and backward of ResNet-50 and ConvNeXt on one thread take 0.81 and
# 0.70 of the time of computing everywhere at a share of 0.4, and 0.95 and 0.88 of it at 0.7.
GATHER_BELOW = 0.7


class SparseLayer(nn.Module):
    """A layer of a sparse network: its context, and its name for messages."""

    sparse_context: SparseContext
    sparse_name: str

    def active_on(self, x: Tensor, *, channels_last: bool = False) -> ActiveCells | None:
        """The mask that `x` is under; None outside a context and for what has been pooled to one position."""
        active = self.sparse_context.active
        if active is None or x.ndim == 2:
            return None
        if x.ndim != len(active.grid) + 2:
            raise ValueError(
                f"{self.sparse_name}: got {list(x.shape)} under a mask of {len(active.grid)} spatial axes; positions "
                f"can only be told in [batch, channels, *size] or, channels last, [batch, *size, channels]"
            )
        if len(x) != len(active.cells):
            raise ValueError(f"{self.sparse_name}: got {len(x)} samples, the mask is for {len(active.cells)}")
        return None if active.pooled(x.shape[1:-1] if channels_last else x.shape[2:]) else active

    def gathers(self, x: Tensor, active: ActiveCells) -> bool:
        """Whether moving the visible positions out and back costs less than multiplying the hidden ones."""
        return x.device.type == "cpu" and active.share <= GATHER_BELOW

    def masked(self, y: Tensor, active: ActiveCells) -> Tensor:
        if active.pooled(y.shape[2:]):
            return y
        return y * active.factors(y.shape[2:], y.dtype, self.sparse_name)

    def masked_channels_last(self, y: Tensor, active: ActiveCells) -> Tensor:
        return y * active.factors(y.shape[1:-1], y.dtype, self.sparse_name).movedim(1, -1)


class MaskedInput(SparseLayer):
    """A whole network, or its first layer: hidden pixels do not get in, whatever they hold."""

    def forward(self, x: Tensor, *arguments: Any, **keywords: Any) -> Any:
        active = self.active_on(x)
        if active is None or active.inside:
            return super().forward(x, *arguments, **keywords)
        x = x.masked_fill(~active.visible(x.shape[2:], self.sparse_name), 0)
        active.inside = True  # the first layer of a network that was entered as a whole may get a padded image
        try:
            return super().forward(x, *arguments, **keywords)
        finally:
            active.inside = False


class MaskedOutput(SparseLayer):
    """Convolutions, local pools and activations that are not 0 at 0."""

    def forward(self, x: Tensor) -> Tensor:
        active = self.active_on(x)
        y = super().forward(x)
        return y if active is None else self.masked(y, active)


class Pointwise(SparseLayer):
    """Convolutions 1x1: on a CPU multiplied out at visible positions only."""

    def forward(self, x: Tensor) -> Tensor:
        active = self.active_on(x)
        if active is None:
            return super().forward(x)
        if not self.gathers(x, active):
            y = super().forward(x)
            return y if self.bias is None else self.masked(y, active)
        steps = [slice(None, None, step) for step in self.stride]
        x = x[(slice(None), slice(None), *steps)]
        index = active.positions(x.shape[2:], self.sparse_name)
        return scatter(F.linear(gather(x, index), self.weight.flatten(1), self.bias), index, x)


class PointwiseLinear(SparseLayer):
    """A linear layer on [batch, *size, channels], as a convolution 1x1; its bias stays off hidden positions."""

    def forward(self, x: Tensor) -> Tensor:
        active = self.active_on(x, channels_last=True)
        if active is None:
            return super().forward(x)
        if not self.gathers(x, active):
            y = super().forward(x)
            return y if self.bias is None else self.masked_channels_last(y, active)
        x = x.movedim(-1, 1)
        index = active.positions(x.shape[2:], self.sparse_name)
        return scatter(super().forward(gather(x, index)), index, x).movedim(1, -1)


class MaskedLayerNorm(SparseLayer):
    """Layer norm over the channels of each position, which are the last axis or, as in ConvNeXt, the second."""

    def forward(self, x: Tensor) -> Tensor:
        channels_last = self._channels_last(x)
        active = self.active_on(x, channels_last=channels_last)
        y = super().forward(x)
        if active is None:
            return y
        return self.masked_channels_last(y, active) if channels_last else self.masked(y, active)

    def _channels_last(self, x: Tensor) -> bool:
        if hasattr(self, "data_format"):
            return self.data_format == "channels_last"
        own = super().forward.__func__ is not nn.LayerNorm.forward
        return not (own and x.shape[1] == self.normalized_shape[0])


class GlobalPool(SparseLayer):
    """Adaptive pools: to one position over the visible positions; to a larger map as the local pools."""

    def forward(self, x: Tensor) -> Tensor:
        active = self.active_on(x)
        if active is None:
            return super().forward(x)
        sizes = self.output_size if isinstance(self.output_size, tuple) else (self.output_size,)
        if any(n != 1 for n in sizes):
            return self.masked(super().forward(x), active)
        axes = tuple(range(2, x.ndim))
        visible = active.visible(x.shape[2:], self.sparse_name)
        if isinstance(self, (nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d)):
            return x.masked_fill(~visible, -torch.inf).amax(axes, keepdim=True)
        return x.masked_fill(~visible, 0).sum(axes, keepdim=True) / visible.sum(axes, keepdim=True).clamp_min(1)


class ActiveBatchNorm(SparseLayer):
    """Batch norm, synchronised or not: the layer's own, on the visible positions of all samples as one long batch."""

    def forward(self, x: Tensor) -> Tensor:
        active = self.active_on(x)
        if active is None:
            return super().forward(x)
        index = active.positions(x.shape[2:], self.sparse_name)
        if len(index) == 1 and (self.training or self.running_mean is None):
            raise ValueError(f"{self.sparse_name}: batch norm got one visible position; it has no variance")
        rows = gather(x, index)
        return scatter(super().forward(rows.view(*rows.shape, *[1] * (x.ndim - 2))).flatten(1), index, x)


class ActiveSampleNorm(SparseLayer):
    """Group and instance norm: the layer's own, on the visible positions of each sample."""

    def forward(self, x: Tensor) -> Tensor:
        active = self.active_on(x)
        if active is None:
            return super().forward(x)
        index = active.positions(x.shape[2:], self.sparse_name)
        counts = active.counts(x.shape[2:])
        instance = isinstance(self, _InstanceNorm)
        if instance and 1 in counts and (self.training or self.running_mean is None):
            raise ValueError(f"{self.sparse_name}: instance norm got one visible position; it has no variance")
        rows = gather(x, index)
        tail = [1] * (x.ndim - 3)
        if min(counts) == max(counts):
            maps = rows.unflatten(0, (len(counts), -1)).transpose(1, 2).unflatten(2, (-1, *tail))
            return scatter(super().forward(maps).flatten(2).transpose(1, 2).flatten(0, 1), index, x)
        if instance and self.training and self.running_mean is not None:
            raise ValueError(
                f"{self.sparse_name}: running statistics need as many visible positions in each sample, got "
                f"{min(counts)} to {max(counts)}"
            )
        samples = [part.T.reshape(1, x.shape[1], -1, *tail) for part in rows.split(counts) if len(part)]
        normed = [super(ActiveSampleNorm, self).forward(sample).flatten(2)[0].T for sample in samples]
        return scatter(torch.cat(normed), index, x)


def gather(x: Tensor, index: Tensor) -> Tensor:
    """Rows [active, channels] of a map [batch, channels, *size]."""
    return _Gather.apply(x.movedim(1, -1).flatten(0, -2), index)


def scatter(rows: Tensor, index: Tensor, like: Tensor) -> Tensor:
    """A map of the shape of `like` (but for its channels) with `rows` at `index` and 0 elsewhere."""
    size = torch.Size((len(like), *like.shape[2:]))
    return _Scatter.apply(rows, index, size.numel()).view(*size, -1).movedim(-1, 1)


class _Gather(torch.autograd.Function):
    """Choose rows, each once. PyTorch's own adds gradients up where nothing meets, on a GPU in no fixed order."""

    @staticmethod
    def forward(ctx: Any, flat: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.total = len(flat)
        return flat.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return _Scatter.apply(gradient, ctx.saved_tensors[0], ctx.total), None


class _Scatter(torch.autograd.Function):
    """Put rows in their places. PyTorch's own keeps the rows for the backward, which only needs their places."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, index: Tensor, total: int) -> Tensor:
        ctx.save_for_backward(index)
        return rows.new_zeros(total, rows.shape[1]).index_copy_(0, index, rows)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return _Gather.apply(gradient, ctx.saved_tensors[0]), None, None
