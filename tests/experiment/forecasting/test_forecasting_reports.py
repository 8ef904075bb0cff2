"""Comparison tables and forecast tables of a forecasting report."""

from functools import partial

import numpy as np
import pytest

pd = pytest.importorskip("pandas", reason="the extra flambeau[series] is not installed")

from flambeau.data.series import series_from_frame, split_windows  # noqa: E402
from flambeau.experiment.forecasting.report import (  # noqa: E402
    compare,
    comparison_sentence,
    forecast_table,
    rolled_forecast,
)
from flambeau.models.series import DLinear, RepeatLast, SeasonalNaive  # noqa: E402
from flambeau.training import Trainer  # noqa: E402
from flambeau.training.estimators.forecaster import Forecaster  # noqa: E402

MODELS = {"repeat last": RepeatLast, "seasonal naive": partial(SeasonalNaive, season=12), "DLinear": DLinear}


def periodic(length=300):
    t = np.arange(length)
    dates = pd.date_range("2024-01-01", periods=length, freq="h")
    return series_from_frame(pd.DataFrame({"date": dates, "y": 50 + 9 * np.sin(2 * np.pi * t / 12)}))


def test_compares_on_all_test_windows_and_names_the_better():
    splits = split_windows(periodic(), seq_len=24, pred_len=12)
    trained, rows = compare(splits, MODELS, Trainer(steps=2, select="min"))
    assert [row["model"] for row in rows] == list(trained) == list(MODELS)
    table = {row["model"]: row for row in rows}
    assert table["seasonal naive"]["MSE"] < 1e-6 and table["seasonal naive"]["parameters"] == 0
    assert table["DLinear"]["parameters"] == 2 * (24 * 12 + 12)
    sentence = comparison_sentence("demo", rows, "DLinear")
    assert sentence.startswith("demo: seasonal naive had a lower test MSE than DLinear (repeat last ")


def test_a_model_can_have_a_trainer_of_its_own():
    splits = split_windows(periodic(), seq_len=24, pred_len=12)
    slow, tuned = Trainer(steps=1), Trainer(steps=200)
    _, (plain,) = compare(splits, {"DLinear": DLinear}, slow)
    _, (better,) = compare(splits, {"DLinear": DLinear}, slow, tuned={"DLinear": tuned})
    assert better["MSE"] < 0.1 * plain["MSE"]


@pytest.mark.parametrize("length", [300, 307])
def test_the_forecast_table_covers_the_test_part_and_the_future(length):
    series = periodic(length)
    splits = split_windows(series, seq_len=24, pred_len=12)
    naive = compare(splits, {"naive": MODELS["seasonal naive"]}, Trainer(steps=1))[0]["naive"]
    rolled = rolled_forecast(naive, splits, series)
    future = Forecaster(MODELS["seasonal naive"], seq_len=24, pred_len=12).fit(series).predict()
    table = forecast_table(series, splits, rolled, future)
    test = table[table["part"] == "test"]
    assert len(test) == int(0.2 * length) and list(test["date"]) == list(series[0].times[-len(test) :])
    np.testing.assert_allclose(test["forecast"], test["truth"], atol=1e-3)
    ahead = table[table["part"] == "future"]
    np.testing.assert_allclose(ahead["forecast"], periodic(length + 12)[0].targets[-12:, 0], atol=1e-3)
    assert ahead["truth"].isna().all()
