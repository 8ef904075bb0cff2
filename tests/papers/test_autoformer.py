"""The experiment on the embedded series, on a user's file, and on a file of the benchmark."""

import numpy as np
import pytest

pd = pytest.importorskip("pandas", reason="the extra flambeau[series] is not installed")
pytest.importorskip("statsmodels", reason="the extra flambeau[series] is not installed")
pytest.importorskip("pmdarima", reason="the extra flambeau[series] is not installed")

from flambeau.experiment import run_experiment  # noqa: E402
from flambeau.papers.catalog import describe, load  # noqa: E402

FAST = (
    "model.dim=8",
    "model.heads=2",
    "model.ff=8",
    "model.enc_layers=1",
    "training.steps=3",
    "training.evaluate_every=3",
)


def run(tmp_path, *overrides, preset="cpu", name="run", seed=0):
    return run_experiment(
        load("autoformer"), preset=preset, out=tmp_path / name, overrides=[*FAST, *overrides], seed=seed
    )


def load_csv(path, periods=600, freq="h"):
    rng = np.random.default_rng(0)
    t = np.arange(periods)
    frame = pd.DataFrame(
        {
            "timestamp": pd.date_range("2024-01-01", periods=periods, freq=freq),
            "MW": 3000 + 500 * np.sin(2 * np.pi * t / 24) + 20 * rng.normal(size=periods),
            "temp": rng.normal(10, 5, periods),
            "site": "north",
        }
    )
    frame.loc[100:103, "MW"] = np.nan
    frame.drop(index=range(200, 210)).to_csv(path, index=False)
    return frame


def test_smoke_measures_every_claim_or_says_why(tmp_path):
    result = run_experiment(load("autoformer"), preset="smoke", out=tmp_path, seed=0)
    assert len(result["claims"]) == len(describe("autoformer").claims)
    for claim in result["claims"]:
        assert (claim["value"] is not None) != claim["name"].startswith("own_") and claim["why"]
        if claim["name"] == "periods":
            assert claim["value"] > 0.95  # this one needs no training
    assert {row["model"] for row in result["tables"]["CO2"]} >= {
        "seasonal naive",
        "DLinear",
        "Autoformer",
        "Transformer",
    }
    assert set(result["tables"]["demand"][0]) == {"model", "MSE", "MAE", "MASE", "parameters", "CPU s"}
    assert len(result["figures"]) == 6 and any("lower test MSE" in note for note in result["notes"])


def test_a_users_file_is_forecast_to_past_its_end(tmp_path):
    frame = load_csv(tmp_path / "load.csv")
    result = run(tmp_path, f"data={tmp_path / 'load.csv'}", "target=MW")
    claims = {claim["name"]: claim for claim in result["claims"]}
    assert claims["own_naive"]["value"] > 0 and claims["naive"]["value"] is None and claims["naive"]["why"]
    table = pd.read_csv(tmp_path / "run" / "forecast.csv", parse_dates=["timestamp"])
    test, future = (table[table["part"] == part] for part in ("test", "future"))
    assert len(test) == 120 and test["timestamp"].iloc[-1] == frame["timestamp"].iloc[-1]
    np.testing.assert_allclose(test["truth"], frame["MW"].iloc[-120:])
    assert len(future) == 48 and future["timestamp"].iloc[0] == frame["timestamp"].iloc[-1] + pd.Timedelta(hours=1)
    assert table["forecast"].between(0, 6000).all()
    assert (tmp_path / "run" / "figures" / "load_forecast.png").stat().st_size > 10_000
    assert any(
        "600 steps of h (season 24) of MW, 14 values missing; 192 steps looked at, 48 forecast" in n
        for n in result["notes"]
    )


@pytest.mark.parametrize(("freq", "periods", "ahead"), [("MS", 150, 12), ("QE", 80, 4)])
def test_sizes_suit_the_step(tmp_path, freq, periods, ahead):
    frame = pd.DataFrame(
        {"month": pd.date_range("1990-01-01", periods=periods, freq=freq), "sales": np.arange(periods) % 12}
    )
    frame.to_csv(tmp_path / "sales.csv", index=False)
    run(tmp_path, f"data={tmp_path / 'sales.csv'}")
    table = pd.read_csv(tmp_path / "run" / "forecast.csv")
    assert (table["part"] == "future").sum() == ahead and (table["part"] == "test").sum() == int(0.2 * periods)


def test_columns_that_help_and_several_series(tmp_path):
    frame = load_csv(tmp_path / "a.csv", 400)
    both = pd.concat([frame.assign(site=site) for site in ("north", "south")])
    future = pd.DataFrame(
        {"timestamp": pd.date_range(frame["timestamp"].iloc[-1], periods=25, freq="h")[1:], "temp": 9.0}
    )
    both = pd.concat([both, *(future.assign(site=site) for site in ("north", "south"))])
    both.to_csv(tmp_path / "two.csv", index=False)
    run(tmp_path, f"data={tmp_path / 'two.csv'}", "target=MW", "known=temp", "id=site", "pred_len=24", "seq_len=48")
    table = pd.read_csv(tmp_path / "run" / "forecast.csv")
    assert set(table["site"]) == {"north", "south"} and (table["part"] == "future").sum() == 48


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("target=Mw",), r"no column 'Mw' \(did you mean 'MW'\?\)"),
        (("target=MW", "date=timestmp"), r"no column 'timestmp' \(did you mean 'timestamp'"),
        (("target=MW", "pred_len=100"), r"has 600 steps; seq_len 192 and pred_len 100 .* need at least 9\d\d"),
        (("target=MW", "known=temp"), "known: temp must be given for 48 steps past the end"),
        (("target=MW", "freq=sometimes"), "freq must be a pandas frequency"),
    ],
)
def test_bad_use_is_said_clearly(tmp_path, overrides, message):
    load_csv(tmp_path / "load.csv")
    with pytest.raises(ValueError, match=message):
        run(tmp_path, f"data={tmp_path / 'load.csv'}", *overrides)


def test_a_file_of_the_benchmark_has_its_split_and_its_published_figures(tmp_path):
    """A file named and laid out as ETTm2.csv, cut to the rows of the protocol, at a quarter of its columns."""
    rows = 57_600 + 100  # the protocol uses 20 months of 30 days and leaves the rest
    values = np.sin(np.arange(rows)[:, None] / 15 + np.arange(2))
    frame = pd.DataFrame(values.round(3), columns=["HUFL", "OT"])
    frame.insert(0, "date", pd.date_range("2016-07-01", periods=rows, freq="15min"))
    frame.to_csv(tmp_path / "ETTm2.csv", index=False)
    tree = load("autoformer").tree("paper", [f"data={tmp_path / 'ETTm2.csv'}"])
    assert (tree["seq_len"], tree["pred_len"], tree["training.epochs"], tree["training.patience"]) == (96, 96, 10, 3)

    from flambeau.data.series import read_series, split_of, split_windows

    series = read_series(tmp_path / "ETTm2.csv")
    assert series[0].target_names == ("HUFL", "OT") and series[0].freq == "15min"
    splits = split_windows(series, seq_len=96, pred_len=96, split=split_of("ETTm2"))
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [34369, 11425, 11425]
