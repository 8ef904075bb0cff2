"""Moving-average decomposition: sums back, removes levels and ramps, refuses even kernels."""

import pytest
import torch
from torch.nn import functional as F

from flambeau.nn.series.decomposition import SeasonalLayerNorm, SeriesDecomposition, moving_average


def test_parts_sum_to_the_input():
    x = torch.randn(2, 50, 3, generator=torch.Generator().manual_seed(0)) * 100
    for kernel in (25, [7, 13, 25]):
        seasonal, trend = SeriesDecomposition(kernel)(x)
        torch.testing.assert_close(seasonal + trend, x, rtol=1e-6, atol=1e-5)


def test_equals_average_pooling_of_the_repeated_ends():
    x = torch.randn(2, 60, 3, generator=torch.Generator().manual_seed(1)) + 300
    padded = F.pad(x.transpose(1, 2), (12, 12), mode="replicate")
    torch.testing.assert_close(moving_average(x, 25), F.avg_pool1d(padded, 25, 1).transpose(1, 2), rtol=1e-6, atol=1e-6)


def test_rounding_does_not_grow_with_the_length():
    x = torch.randn(1, 20000, 1, generator=torch.Generator().manual_seed(2)) + 1000
    exact = moving_average(x.double(), 25)
    assert (moving_average(x, 25) - exact).abs().max() < 1e-4  # half a unit in the last place of 1000 is 3e-5


def test_constant_has_no_seasonal_part():
    seasonal, trend = SeriesDecomposition(25)(torch.full((1, 40, 2), 3.7))
    assert torch.equal(seasonal, torch.zeros_like(seasonal))


def test_ramp_is_seasonal_only_near_the_ends():
    seasonal, _ = SeriesDecomposition(25)(torch.arange(100.0).view(1, -1, 1))
    assert seasonal[:, 12:-12].abs().max() < 1e-5
    assert (seasonal[:, :12].abs() > 0.01).all() and (seasonal[:, -12:].abs() > 0.01).all()


def test_several_kernels_are_mixed_by_weights_that_learn():
    decomposition = SeriesDecomposition([3, 9])
    x = torch.randn(1, 30, 1, generator=torch.Generator().manual_seed(3))
    _, trend = decomposition(x)
    low, high = (
        torch.minimum(moving_average(x, 3), moving_average(x, 9)),
        torch.maximum(moving_average(x, 3), moving_average(x, 9)),
    )
    assert ((trend >= low - 1e-6) & (trend <= high + 1e-6)).all()
    trend.square().sum().backward()
    assert decomposition.mixture.weight.grad.abs().sum() > 0


def test_seasonal_norm_has_no_mean_over_time():
    x = torch.randn(2, 30, 8, generator=torch.Generator().manual_seed(4)) + 5
    assert SeasonalLayerNorm(8)(x).mean(dim=1).abs().max() < 1e-6


@pytest.mark.parametrize("kernel", [24, 0, -1, [3, 4], []])
def test_refuses_kernels_without_a_centre(kernel):
    with pytest.raises(ValueError, match="kernel must be odd"):
        SeriesDecomposition(kernel)
