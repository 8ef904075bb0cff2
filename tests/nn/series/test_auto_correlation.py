"""Auto-Correlation: the correlation, the lags, the rolls, and their cost."""

import math

import numpy as np
import pytest
import torch

from flambeau.nn.series.auto_correlation import AutoCorrelation, circular_correlation, delay_sum, delay_sum_gather


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("length", [30, 31])
def test_correlation_equals_the_circular_loop(length):
    q, k = normal(2, length, 3), normal(2, length, 3, seed=1)
    found = circular_correlation(q, k)
    assert found.shape == q.shape
    for b in range(2):
        for c in range(3):
            one, two = q[b, :, c].numpy(), k[b, :, c].numpy()
            loop = [np.correlate(np.roll(one, -lag), two)[0] for lag in range(length)]
            np.testing.assert_allclose(found[b, :, c], loop, rtol=1e-4, atol=1e-4)


def test_lag_zero_is_the_energy_and_equal_series_are_symmetric():
    q = normal(2, 24, 3)
    found = circular_correlation(q, q)
    torch.testing.assert_close(found[:, 0], q.square().sum(1))
    torch.testing.assert_close(found[:, 1:], found[:, 1:].flip(1), rtol=1e-4, atol=1e-4)


def test_sinusoid_is_reproduced_from_its_periods():
    length, period = 96, 12
    x = torch.sin(2 * math.pi * torch.arange(length) / period).view(1, length, 1, 1)
    correlation = circular_correlation(x, x).flatten()
    largest = correlation.topk(length // period).indices
    assert sorted(largest.tolist()) == list(range(0, length, period))
    layer = AutoCorrelation(factor=1).eval()
    assert layer.lag_count(length) == 4 <= length // period
    torch.testing.assert_close(layer(x, x, x), x, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("align", "delay"), [("lag", 7), ("paper", 40 - 7)])
def test_align_puts_a_delayed_series_back(align, delay):
    k = normal(1, 40, 2, 4)
    q = k.roll(delay, dims=1)  # q(t) = k(t - delay)
    layer = AutoCorrelation(factor=0.1, align=align).eval()
    assert layer.lag_count(40) == 1
    weights, lags = layer.select(q, k)
    assert lags.item() == delay and weights.item() == 1
    restored = k.roll(7, dims=1)
    torch.testing.assert_close(layer(q, k, k), restored, rtol=0, atol=1e-5)


def test_training_and_evaluation_agree_for_equal_series():
    q, k, v = (normal(1, 48, 2, 4, seed=s).expand(3, -1, -1, -1) for s in range(3))
    layer = AutoCorrelation(3)
    torch.testing.assert_close(layer.train()(q, k, v), layer.eval()(q, k, v), rtol=1e-5, atol=1e-5)


def test_only_training_depends_on_the_other_series():
    q, k, v = (normal(4, 48, 2, 4, seed=s) for s in range(3))
    layer = AutoCorrelation(1)
    alone = layer.eval()(q[:1], k[:1], v[:1])
    torch.testing.assert_close(layer(q, k, v)[:1], alone)
    assert (layer.train()(q, k, v)[:1] - alone).abs().max() > 0.1
    forced = AutoCorrelation(1, batch_lags=False).train()
    torch.testing.assert_close(forced(q, k, v)[:1], alone)


@pytest.mark.parametrize("length", [20, 21])
def test_the_sum_of_rolls_is_the_loop(length):
    v, weights = normal(3, length, 5), normal(3, 4, seed=1)
    lags = torch.stack([torch.randperm(length, generator=torch.Generator().manual_seed(i))[:4] for i in range(3)])
    loop = torch.stack([sum(weights[b, i] * v[b].roll(-int(lags[b, i]), dims=0) for i in range(4)) for b in range(3)])
    torch.testing.assert_close(delay_sum_gather(v, weights, lags), loop, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(delay_sum(v, weights, lags), loop, rtol=1e-5, atol=2e-6)


def test_full_with_one_channel_is_the_averaged_mode():
    q, k, v = (normal(3, 40, 1, 1, seed=s) for s in range(3))
    torch.testing.assert_close(AutoCorrelation(2, full=True).eval()(q, k, v), AutoCorrelation(2).eval()(q, k, v))


def test_full_treats_each_channel_by_itself():
    q, k, v = (normal(2, 40, 2, 3, seed=s) for s in range(3))
    together = AutoCorrelation(2, full=True).eval()(q, k, v)
    for head in range(2):
        for channel in range(3):
            one = [x[:, :, head : head + 1, channel : channel + 1] for x in (q, k, v)]
            alone = AutoCorrelation(2).eval()(*one)
            torch.testing.assert_close(
                together[:, :, head : head + 1, channel : channel + 1], alone, rtol=1e-4, atol=1e-5
            )


def test_gradients_reach_queries_keys_and_values():
    q, k, v = (normal(2, 20, 1, 2, seed=s).double().requires_grad_() for s in range(3))
    AutoCorrelation(2).eval()(q, k, v).square().sum().backward()
    assert all(x.grad.abs().sum() > 0 for x in (q, k, v))


def test_keys_are_cut_or_padded_by_zeros():
    q, k, v = normal(2, 30, 2, 4), normal(2, 20, 2, 4, seed=1), normal(2, 20, 2, 4, seed=2)
    zeros = torch.zeros(2, 10, 2, 4)
    layer = AutoCorrelation(2).eval()
    torch.testing.assert_close(layer(q, k, v), layer(q, torch.cat([k, zeros], 1), torch.cat([v, zeros], 1)))
    torch.testing.assert_close(layer(k, q, q), layer(k, q[:, :20], q[:, :20]))


def test_masked_keys_do_not_count():
    q, k, v = (normal(2, 30, 2, 4, seed=s) for s in range(3))
    mask = (torch.arange(30) < 25).float().expand(2, -1)
    noise = torch.where(mask[..., None, None] > 0, 0.0, 1e3)
    layer = AutoCorrelation(2).eval()
    torch.testing.assert_close(layer(q, k, v, mask), layer(q, k + noise, v + noise, mask))


def saved_bytes(length):
    """Bytes that autograd keeps for one forward of a training step."""
    total = 0

    def pack(tensor):
        nonlocal total
        total += tensor.numel() * tensor.element_size()
        return tensor

    q, k, v = (normal(1, length, 2, 4, seed=s).requires_grad_() for s in range(3))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        AutoCorrelation(3)(q, k, v)
    return total


@pytest.mark.parametrize("length", [96, 512, 2048])
def test_memory_is_linear_in_the_length(length):
    assert saved_bytes(2 * length) <= 2.2 * saved_bytes(length)


def test_operations_are_l_log_l():
    """No tensor of the forward has more than a constant times L elements, so all work is in FFTs of length L."""
    largest = {}
    for length in (256, 512):
        seen = []

        class Watch(torch.utils._python_dispatch.TorchDispatchMode):
            def __torch_dispatch__(self, func, types, args=(), kwargs=None, seen=seen):
                out = func(*args, **(kwargs or {}))
                seen.append((func.__name__, out.numel() if isinstance(out, torch.Tensor) else 0))
                return out

        with Watch():
            AutoCorrelation(3).eval()(*(normal(1, length, 1, 8, seed=s) for s in range(3)))
        assert not [name for name, _ in seen if name.startswith(("mm", "bmm", "matmul"))]
        transforms = sum("fft" in name for name, _ in seen)
        largest[length] = (max(size for _, size in seen), transforms)
    assert largest[512][0] <= 2 * largest[256][0] and largest[512][1] == largest[256][1]


def test_half_precision_autocast_keeps_the_transforms_in_float32():
    q, k, v = (normal(2, 30, 2, 4, seed=s) for s in range(3))
    layer = AutoCorrelation(2).eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = layer(q.bfloat16(), k.bfloat16(), v.bfloat16())
    assert out.dtype == torch.bfloat16
    exact = layer(q.bfloat16().float(), k.bfloat16().float(), v.bfloat16().float())
    torch.testing.assert_close(out.float(), exact, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(("factor", "length", "lags"), [(1, 1, 1), (1, 2, 1), (1, 96, 4), (3, 96, 13), (50, 10, 10)])
def test_number_of_lags(factor, length, lags):
    assert AutoCorrelation(factor).lag_count(length) == lags
    x = normal(1, length, 1, 2)
    assert AutoCorrelation(factor).eval()(x, x, x).shape == x.shape


def test_has_no_graph_break():
    """Exported as one graph: no value is read on the way."""
    q, k, v = (normal(2, 24, 2, 4, seed=s) for s in range(3))
    layer = AutoCorrelation(2).eval()
    torch.testing.assert_close(torch.export.export(layer, (q, k, v)).module()(q, k, v), layer(q, k, v))


def test_refuses_bad_arguments():
    with pytest.raises(ValueError, match="factor must be positive, got 0"):
        AutoCorrelation(0)
    with pytest.raises(ValueError, match="align must be 'paper' or 'lag', got 'left'"):
        AutoCorrelation(align="left")
