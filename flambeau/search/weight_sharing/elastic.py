"""Modules of a super-network: all variants of a part in one, weighted by the decisions that choose among them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

Weights = Callable[[], list[tuple[int, "float | Tensor"]]]  # index and weight of the options in use; the rest are 0


class Scalar:
    """A number that is decided: reads as the weighted mean of its options in arithmetic."""

    def __init__(self, values: Sequence[float], weights: Weights) -> None:
        self.values, self.weights = values, weights

    def value(self) -> float | Tensor:
        pairs = self.weights()
        if len(pairs) == 1 and isinstance(pairs[0][1], float):
            return self.values[pairs[0][0]]
        return sum(weight * self.values[index] for index, weight in pairs)

    def __float__(self) -> float:
        return float(self.value())

    def __mul__(self, other):
        return self.value() * other

    def __add__(self, other):
        return self.value() + other

    __rmul__, __radd__ = __mul__, __add__


class Switch(nn.Module):
    """The weighted sum of what the candidates in use return; with one in use, exactly that one."""

    def __init__(self, candidates: Sequence[nn.Module], weights: Weights) -> None:
        super().__init__()
        self.candidates, self.weights = nn.ModuleList(candidates), weights

    def forward(self, *inputs):
        """What the candidates return; all of one shape."""
        return sum(weight * self.candidates[index](*inputs) for index, weight in self.weights())


class Repeat(nn.Sequential):
    """`times` modules made by `make`, one after the other; as `times=oneof([1, 2, 3])` a searchable depth."""

    def __init__(self, make: Callable[[], nn.Module], times: int):
        if times < 0:
            raise ValueError(f"times: expected at least 0, got {times}")
        super().__init__(*(make() for _ in range(times)))


class ElasticRepeat(nn.Module):
    """`Repeat` whose depth is decided: the weighted sum of what comes out at each depth."""

    def __init__(self, layers: Sequence[nn.Module], depths: Sequence[int], weights: Weights) -> None:
        super().__init__()
        self.layers, self.depths, self.weights = nn.ModuleList(layers), depths, weights

    def forward(self, x):
        """What comes out at the decided depth."""
        pairs = [(self.depths[index], weight) for index, weight in self.weights()]
        output = 0
        for depth in range(max(depth for depth, _ in pairs) + 1):
            if depth:
                x = self.layers[depth - 1](x)
            output = output + sum(weight * x for at, weight in pairs if at == depth)
        return output


class Size:
    """A width or kernel size: fixed, or one of several by decision."""

    def __init__(self, options: Sequence[int], weights: Weights | None = None) -> None:
        self.options, self.weights = list(options), weights

    @property
    def largest(self) -> int:
        return max(self.options)

    def chosen(self) -> list[tuple[int, float | Tensor]]:
        """Sizes in use and their weights."""
        return [(self.options[i], w) for i, w in self.weights()] if self.weights else [(self.options[0], 1.0)]

    def mask(self, like: Tensor) -> Tensor:
        """For each of the `largest` channels, the weight of the sizes that have it."""
        positions = torch.arange(self.largest, device=like.device)
        return sum(weight * (positions < size).to(like.dtype) for size, weight in self.chosen())

    def kernel_mask(self, like: Tensor, dimensions: int) -> Tensor:
        """The same for a centred window of the largest kernel."""
        distance = (torch.arange(self.largest, device=like.device) - self.largest // 2).abs()
        window = distance
        for _ in range(dimensions - 1):
            window = torch.maximum(window.unsqueeze(-1), distance)
        return sum(weight * (window <= size // 2).to(like.dtype) for size, weight in self.chosen())


class Elastic(nn.Module):
    """A layer built at its largest sizes. Channels beyond the decided widths are masked on both sides of it.

    Args:
        layer: `nn.Linear`, `nn.Conv1d/2d/3d` or `nn.BatchNorm1d/2d/3d`.
        inputs, outputs: widths.
        kernel: kernel size of a convolution; odd, with "same" padding if it is decided.
    """

    def __init__(self, layer: nn.Module, inputs: Size, outputs: Size, kernel: Size | None = None) -> None:
        super().__init__()
        self.layer, self.inputs, self.outputs, self.kernel = layer, inputs, outputs, kernel

    def forward(self, x: Float[Tensor, "*shape"]):
        """The layer's output at its largest width, zero beyond the decided one."""
        axis = -1 if isinstance(self.layer, nn.Linear) else 1
        x = x * _along(self.inputs.mask(x), axis, x.ndim)
        if self.kernel is None:
            y = self.layer(x)
        else:
            layer = self.layer
            weight = layer.weight * self.kernel.kernel_mask(x, layer.weight.ndim - 2)  # type: ignore[operator, union-attr]
            y = layer._conv_forward(x, weight, layer.bias)  # type: ignore[operator]
        return y * _along(self.outputs.mask(y), axis, y.ndim)

    @torch.no_grad()
    def copy_to(self, child: nn.Module) -> None:
        """Give `child`, the layer at the decided sizes, its part of the weights."""
        (inputs, _), (outputs, _) = self.inputs.chosen()[0], self.outputs.chosen()[0]
        state = child.state_dict()
        for name, value in self.layer.state_dict().items():
            if name == "weight" and value.ndim > 1:
                value = value[:outputs, :inputs]
                if self.kernel is not None:
                    size, largest = self.kernel.chosen()[0][0], self.kernel.largest
                    window = slice(largest // 2 - size // 2, largest // 2 + size // 2 + 1)
                    value = value[(..., *[window] * (value.ndim - 2))]
            elif value.ndim == 1:
                value = value[:outputs]
            state[name].copy_(value)


def _along(mask: Tensor, axis: int, dimensions: int) -> Tensor:
    return mask if axis == -1 else mask.view(-1, *[1] * (dimensions - 2))


def softmax_weights(logits: Tensor) -> list[tuple[int, Tensor]]:
    """Every option with its probability."""
    return list(enumerate(functional.softmax(logits, 0).unbind()))
