"""The forecaster for frames: units, formats, horizons, leaks, backtests."""

from functools import partial

import numpy as np
import pytest
import torch
from sklearn.base import clone

pd = pytest.importorskip("pandas", reason="the extra flambeau[series] is not installed")

from flambeau.models.series import Autoformer, DLinear, SeasonalNaive  # noqa: E402
from flambeau.objectives.forecasting import QuantileForecast, StudentTForecast  # noqa: E402
from flambeau.training import Trainer  # noqa: E402
from flambeau.training.estimators.forecaster import Forecaster  # noqa: E402
from flambeau.training.forecasting import forecaster_for, score  # noqa: E402

SHORT = Trainer(steps=3, select="min", evaluate_every=3)
TINY = partial(Autoformer, dim=8, heads=2, ff=8, enc_layers=1, kernel=5)
SHAPE = dict(seq_len=24, pred_len=12, trainer=SHORT)


def frame(length=160, freq="h", noise=0.0, seed=0):
    rng = np.random.default_rng(seed)
    t = np.arange(length)
    return pd.DataFrame(
        {
            "date": pd.date_range("2024-01-01", periods=length, freq=freq),
            "load": 1000 + 200 * np.sin(2 * np.pi * t / 12) + noise * rng.normal(size=length),
            "temp": rng.normal(size=length),
            "holiday": (t % 7 == 0).astype(float),
        }
    )


def test_forecasts_past_the_end_in_the_units_of_the_data():
    found = Forecaster(partial(SeasonalNaive, season=12), **SHAPE).fit(frame(), "load", date="date").predict(12)
    truth = frame(172).iloc[160:]
    assert list(found.columns) == ["date", "load"] and (found["date"].to_numpy() == truth["date"].to_numpy()).all()
    np.testing.assert_allclose(found["load"], truth["load"], rtol=1e-4)


def test_long_horizons_go_on_from_their_own_forecasts():
    found = Forecaster(partial(SeasonalNaive, season=12), **SHAPE).fit(frame(), "load").predict(31)
    np.testing.assert_allclose(found["load"], frame(191)["load"].iloc[160:], rtol=1e-4)


def test_learns_a_sine():
    trainer = Trainer(steps=150, optimizer=partial(torch.optim.Adam, lr=0.01), select="min")
    found = Forecaster(DLinear, seq_len=24, pred_len=12, trainer=trainer).fit(frame(600), "load").predict()
    np.testing.assert_allclose(found["load"], frame(612)["load"].iloc[600:], atol=20)


def test_is_deterministic_and_cloneable():
    forecaster = Forecaster(TINY, **SHAPE, seed=3)
    first, second = forecaster.fit(frame(), "load").predict(), clone(forecaster).fit(frame(), "load").predict()
    pd.testing.assert_frame_equal(first, second)
    assert forecaster.get_params()["seed"] == 3
    assert not first.equals(clone(forecaster).set_params(seed=4).fit(frame(), "load").predict())


def test_long_format_of_nixtla():
    long = pd.concat(
        [frame(noise=5.0, seed=i).assign(unique_id=n)[["unique_id", "date", "load"]] for i, n in enumerate("ab")]
    )
    long = long.set_axis(["unique_id", "ds", "y"], axis=1)
    found = Forecaster(TINY, **SHAPE).fit(long).predict(12)
    assert list(found.columns) == ["unique_id", "ds", "y"] and found["unique_id"].tolist() == ["a"] * 12 + ["b"] * 12


@pytest.mark.parametrize("output", [StudentTForecast(), QuantileForecast((0.1, 0.5, 0.9))])
def test_quantiles_are_columns_that_do_not_cross(output):
    found = Forecaster(TINY, **SHAPE, output=output).fit(frame(noise=20), "load").predict(12, levels=[0.1, 0.5, 0.9])
    assert list(found.columns) == ["date", "load", "load-q0.1", "load-q0.5", "load-q0.9"]
    assert (found["load-q0.1"] < found["load-q0.5"]).all() and (found["load-q0.5"] < found["load-q0.9"]).all()


def test_unknown_future_inputs_do_not_leak_and_known_ones_count():
    """The forecast from a cut does not change with inputs after it, and does with columns known in advance."""
    fitted = Forecaster(TINY, **SHAPE).fit(frame(noise=20), "load", inputs=["temp"], known=["holiday"])
    future = frame(172).iloc[160:]
    before = fitted.predict(12, future=future)
    pd.testing.assert_frame_equal(before, fitted.predict(12, future=future.assign(temp=1e6, load=-1e6)))
    assert not before.equals(fitted.predict(12, future=future.assign(holiday=5.0)))


def test_known_rows_at_the_end_of_the_frame_are_the_future():
    data = frame(172)
    data.loc[160:, ["load", "temp"]] = np.nan
    of_rows = Forecaster(TINY, **SHAPE).fit(data, "load", known=["holiday"]).predict(12)
    of_frame = (
        Forecaster(TINY, **SHAPE).fit(data.iloc[:160], "load", known=["holiday"]).predict(12, future=data.iloc[160:])
    )
    pd.testing.assert_frame_equal(of_rows, of_frame)


def test_bad_horizons_and_futures():
    fitted = Forecaster(TINY, **SHAPE).fit(frame(), "load", inputs=["temp"], known=["holiday"])
    future = frame(172).iloc[160:]
    with pytest.raises(ValueError, match="future must give holiday from 2024-01-07 16:00:00"):
        fitted.predict(12)
    with pytest.raises(ValueError, match="no value of holiday for 2 steps, first 2024-01-08 02:00:00"):
        fitted.predict(12, future=future.iloc[:10])
    with pytest.raises(ValueError, match="future has no column holiday"):
        fitted.predict(12, future=future.drop(columns="holiday"))
    with pytest.raises(
        ValueError, match="horizon must be at most pred_len = 12, got 13: the future of the inputs temp"
    ):
        fitted.predict(13, future=future)
    with pytest.raises(ValueError, match="horizon must be at least 1, got 0"):
        fitted.predict(0)
    with pytest.raises(ValueError, match="not fitted"):
        Forecaster(TINY).predict()


def test_too_short_series_state_the_minimum():
    with pytest.raises(ValueError, match="has 40 steps; seq_len 24 and pred_len 12 need at least 48"):
        Forecaster(TINY, **SHAPE).fit(frame(40), "load")
    assert len(Forecaster(TINY, **SHAPE).fit(frame(48), "load").predict()) == 12


def test_sizes_come_from_the_data():
    fitted = Forecaster(TINY, trainer=SHORT).fit(frame(400, freq="D"), "load")
    assert (fitted.seq_len_, fitted.pred_len_) == (56, 14)


def test_gaps_are_forecast_over():
    data = frame().drop(index=[50, 51, 80])
    data.loc[100, "load"] = np.nan
    found = Forecaster(TINY, **SHAPE).fit(data, "load").predict()
    assert np.isfinite(found["load"]).all()


def test_backtest_refits_before_every_origin():
    found = Forecaster(partial(SeasonalNaive, season=12), **SHAPE).backtest(frame(), "load", horizon=12, origins=3)
    assert found["cutoff"].nunique() == 3 and len(found) == 36
    np.testing.assert_allclose(found["forecast"], found["truth"], rtol=1e-4)
    assert (found["date"] > found["cutoff"]).all() and found["date"].iloc[-1] == frame()["date"].iloc[-1]
    known = Forecaster(TINY, **SHAPE).backtest(frame(noise=9), "load", horizon=6, origins=2, step=3, known=["holiday"])
    assert len(known) == 12 and np.isfinite(known["forecast"]).all()


def test_backtest_does_not_see_past_its_cutoff():
    data, changed = frame(noise=9), frame(noise=9)
    changed.loc[148:, "load"] += 500
    before, after = (Forecaster(TINY, **SHAPE).backtest(d, "load", horizon=12, origins=1) for d in (data, changed))
    np.testing.assert_array_equal(before["forecast"], after["forecast"])
    assert not np.array_equal(before["truth"], after["truth"])


def test_score_counts_every_window():
    from flambeau.data.series import series_from_frame, split_windows

    splits = split_windows(series_from_frame(frame(400, noise=30), "load"), seq_len=24, pred_len=12, season=12)
    naive = forecaster_for(splits.test, partial(SeasonalNaive, season=12))
    found = score(naive, splits.test)
    errors = torch.cat([naive(b["x"]) - b["y"] for b in splits.test.all(1)])
    assert len(errors) == len(splits.test) and found["MSE"] == pytest.approx(errors.square().mean().item(), rel=1e-5)
    assert found["MASE"] == pytest.approx(errors.abs().mean().item() / splits.scalers[0].seasonal_error[0], rel=1e-5)
