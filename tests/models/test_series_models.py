"""Forecasters: one interface, and what each of them must be."""

import pytest
import torch

from flambeau.models.series import (
    Autoformer,
    DLinear,
    ForecastTransformer,
    Informer,
    RepeatLast,
    SeasonalNaive,
    decomposition_attention,
)
from flambeau.models.series.reports import decomposition_report, lag_report

SMALL = dict(dim=16, heads=2, ff=16)
SHAPE = dict(seq_len=24, label_len=8, pred_len=10, marks=3)


def window(batch=2, c_in=4, seed=0, seq_len=24, label_len=8, pred_len=10, marks=3):
    g = torch.Generator().manual_seed(seed)
    return (
        torch.randn(batch, seq_len, c_in, generator=g),
        torch.randn(batch, seq_len, marks, generator=g),
        torch.randn(batch, label_len + pred_len, marks, generator=g),
    )


LEARNED = [Autoformer, decomposition_attention, ForecastTransformer, Informer]


@pytest.mark.parametrize("build", LEARNED)
@pytest.mark.parametrize("c_out", [1, 4])
@pytest.mark.parametrize("outputs", [1, 3])
def test_networks_share_one_interface(build, c_out, outputs):
    model = build(4, c_out, **SHAPE, **SMALL, outputs=outputs)
    out = model(*window())
    assert out.shape == ((2, 10, c_out) if outputs == 1 else (2, 10, c_out, outputs))
    out.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("build", LEARNED)
def test_windows_of_another_shape_are_refused(build):
    model = build(4, **SHAPE, **SMALL).eval()
    x, x_mark, y_mark = window()
    with pytest.raises(ValueError, match=r"x must be \[batch, 24, 4\], got \[2, 20, 4\]"):
        model(x[:, :20], x_mark, y_mark)
    with pytest.raises(ValueError, match=r"y_mark must be \[batch, 18, 3\]"):
        model(x, x_mark, y_mark[:, :10])


@pytest.mark.parametrize("build", [Autoformer, ForecastTransformer])
def test_label_len_is_at_most_seq_len(build):
    with pytest.raises(ValueError, match="label_len must be between 0 and seq_len = 24, got 25"):
        build(1, seq_len=24, label_len=25, pred_len=4, marks=3, **SMALL)
    model = build(1, seq_len=24, label_len=0, pred_len=4, marks=3, **SMALL).eval()
    assert model(*window(c_in=1, label_len=0, pred_len=4)).shape == (2, 4, 1)


def test_lag_selection_and_kernels_are_arguments():
    torch.manual_seed(0)
    x, x_mark, y_mark = window(batch=3)
    model = Autoformer(4, **SHAPE, **SMALL, kernel=[5, 13], align="lag", batch_lags=False, dropout=0.0).train()
    torch.testing.assert_close(model(x, x_mark, y_mark), model.eval()(x, x_mark, y_mark))


def test_marks_come_from_the_frequency():
    pytest.importorskip("pandas", reason="the extra flambeau[series] is not installed")
    assert Autoformer(1, **SMALL).marks == 4 and Autoformer(1, freq="30min", **SMALL).marks == 5
    with pytest.raises(ValueError, match="freq must be a pandas frequency"):
        Autoformer(1, freq="often", **SMALL)
    yearly = Autoformer(1, freq="YE", seq_len=24, label_len=8, pred_len=10, **SMALL).eval()
    assert yearly(*window(c_in=1, marks=0)).shape == (2, 10, 1)


def test_even_kernel_and_indivisible_width():
    with pytest.raises(ValueError, match="kernel must be odd"):
        Autoformer(1, kernel=24, marks=3, **SMALL)
    with pytest.raises(ValueError, match="dim must be a multiple of heads, got 16 and 3"):
        Autoformer(1, dim=16, heads=3, ff=16, marks=3)


def test_a_constant_added_to_the_input_is_added_to_the_trend_that_starts_the_decoder():
    model = Autoformer(2, **SHAPE, **SMALL)
    x = window(c_in=2)[0]
    seasonal, trend = model.start(x)
    shifted_seasonal, shifted_trend = model.start(x + 7)
    torch.testing.assert_close(shifted_seasonal, seasonal, rtol=0, atol=1e-5)
    torch.testing.assert_close(shifted_trend, trend + 7)
    assert seasonal.shape == trend.shape == (2, 18, 2) and (seasonal[:, 8:] == 0).all()
    torch.testing.assert_close(trend[:, 8:], x.mean(1, keepdim=True).expand(-1, 10, -1))


def test_shapes_of_the_defaults():
    """The default network at its default shape: 10.5 million parameters, 96 -> 96."""
    model = Autoformer(7, marks=4).eval()
    assert sum(p.numel() for p in model.parameters()) == 10_535_943
    with torch.no_grad():
        assert model(*window(c_in=7, seq_len=96, label_len=48, pred_len=96, marks=4, batch=1)).shape == (1, 96, 7)


def test_forward_is_one_graph():
    model = Autoformer(4, **SHAPE, **SMALL).eval()
    example = window()
    torch.testing.assert_close(torch.export.export(model, example).module()(*example), model(*example))


def test_series_of_a_batch_do_not_meet_in_evaluation():
    model = Autoformer(4, **SHAPE, **SMALL).eval()
    x, x_mark, y_mark = window(batch=3)
    torch.testing.assert_close(model(x, x_mark, y_mark)[:1], model(x[:1], x_mark[:1], y_mark[:1]), rtol=1e-4, atol=1e-5)


def test_naive_forecasts():
    x = torch.arange(24.0).view(1, -1, 1)
    assert SeasonalNaive(1, seq_len=24, pred_len=10, season=4)(x).flatten().tolist() == [
        20,
        21,
        22,
        23,
        20,
        21,
        22,
        23,
        20,
        21,
    ]
    assert RepeatLast(1, seq_len=24, pred_len=3)(x).flatten().tolist() == [23, 23, 23]
    assert SeasonalNaive(2, 1, seq_len=24, pred_len=2, season=4)(x.expand(-1, -1, 2)).shape == (1, 2, 1)
    with pytest.raises(ValueError, match="season must be between 1 and seq_len = 24, got 25"):
        SeasonalNaive(1, seq_len=24, season=25)


def test_dlinear_starts_at_the_mean_and_is_linear():
    torch.manual_seed(0)
    model = DLinear(3, 2, seq_len=24, pred_len=10)
    x = window(c_in=3)[0]
    with torch.no_grad():
        zero = model(torch.zeros_like(x))
        torch.testing.assert_close(
            model(x) - zero, x[..., :2].mean(1, keepdim=True).expand(-1, 10, -1), rtol=1e-4, atol=1e-5
        )
        torch.testing.assert_close(model(2 * x) - zero, 2 * (model(x) - zero), rtol=1e-4, atol=1e-5)
    assert DLinear(3, 2, seq_len=24, pred_len=10, outputs=3)(x).shape == (2, 10, 2, 3)


def test_the_transformer_does_not_see_later_marks_in_its_decoder():
    model = ForecastTransformer(1, **SHAPE, **SMALL).eval()
    x, x_mark, y_mark = window(c_in=1)
    changed = y_mark.clone()
    changed[:, 14:] += 10
    before, after = model(x, x_mark, y_mark), model(x, x_mark, changed)
    torch.testing.assert_close(before[:, :6], after[:, :6])
    assert (before[:, 6:] - after[:, 6:]).abs().max() > 1e-3


def test_lag_report_names_every_layer():
    model = Autoformer(4, **SHAPE, **SMALL, enc_layers=2, factor=1)
    x, x_mark, y_mark = window()
    report = lag_report(model, dict(x=x, x_mark=x_mark, y_mark=y_mark))
    assert list(report) == [f"encoder.{i}.mixing.mechanism" for i in (0, 1)] + [
        "decoder.0.mixing.mechanism",
        "decoder.0.cross.mechanism",
    ]
    for lags, weights in report.values():
        assert lags.shape == weights.shape and lags.shape[0] == 2 and lags.min() >= 0 and lags.max() < 24
        torch.testing.assert_close(weights.sum(1), torch.ones(2))
    assert model.training and not model._forward_hooks


def test_decomposition_report_sums_to_the_forecast():
    model = Autoformer(4, **SHAPE, **SMALL)
    x, x_mark, y_mark = window()
    report = decomposition_report(model, dict(x=x, x_mark=x_mark, y_mark=y_mark))
    seasonal, trend = report["forecast"]
    torch.testing.assert_close(seasonal + trend, model.eval()(x, x_mark, y_mark))
    assert "encoder.0.decompositions.1" in report and "decoder.0.decompositions.2" in report
