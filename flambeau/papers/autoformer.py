"""Autoformer: series decomposition and Auto-Correlation for long-horizon forecasting."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from flambeau.data import series as data_series
from flambeau.data.series import TimeSeries, co2, season_length, taylor
from flambeau.experiment import Claim, experiment
from flambeau.experiment.forecasting import figures, report
from flambeau.files import write_bytes
from flambeau.models.series import Autoformer, DLinear, ForecastTransformer, SeasonalNaive
from flambeau.models.series.reports import share_with_lag
from flambeau.nn.series.attention import FullAttention
from flambeau.symbolic import symbolize
from flambeau.training import OneCycle, StepHalving, Trainer
from flambeau.training.estimators import Forecaster

# fmt: off
CLAIMS = [
    Claim("naive", "weekly CO2: test MSE over that of repeating the last year", unit="x", at_most=0.75),
    Claim("transformer", "weekly CO2: test MSE over that of a vanilla Transformer of the same size",
          paper="38 % below the best earlier Transformer, mean of six benchmarks", unit="x", at_most=0.1),
    Claim("attention", "weekly CO2: test MSE over that of the same network with self-attention",
          paper="lower in the ablation", unit="x", at_most=1.1),
    Claim("dlinear", "weekly CO2: test MSE over that of DLinear, which came after the paper", unit="x"),
    Claim("periods", "half-hourly demand: windows in which untrained Auto-Correlation finds one day or three",
          unit="of windows", at_least=0.9),
    Claim("demand_naive", "half-hourly demand: test MSE over that of repeating the last day", unit="x", at_most=1.0),
    Claim("demand_transformer", "half-hourly demand: test MSE over that of the vanilla Transformer", unit="x"),
    Claim("demand_dlinear", "half-hourly demand: test MSE over that of DLinear", unit="x"),
    Claim("own_naive", "own data: test MSE over that of repeating the last season", unit="x", at_most=1.0),
    Claim("own_dlinear", "own data: test MSE over that of DLinear", unit="x"),
]
PRESETS = {
    "smoke": {"model.dim": 8, "model.heads": 2, "model.ff": 16, "training.steps": 2, "training.evaluate_every": 2},
    "paper": {
        "data": "ETTm2.csv", "seq_len": 96, "pred_len": 96, "model.dim": 512, "model.heads": 8, "model.ff": 2048,
        "training": symbolize(Trainer)(
            epochs=10, optimizer=symbolize(torch.optim.Adam).partial(lr=1e-4),
            schedule=symbolize(StepHalving)(every=0.1), select="min", patience=3,
        ),
    },
}
# fmt: on


@experiment("autoformer", claims=CLAIMS, presets=PRESETS)
def run(
    run,
    *,
    data: str | None = None,
    target: str | None = None,
    date: str | None = None,
    id: str | None = None,
    inputs: str | None = None,
    known: str | None = None,
    freq: str | None = None,
    seq_len: int | None = None,
    pred_len: int | None = None,
    model: Callable[..., Any] = symbolize(Autoformer).partial(dim=32, heads=4, ff=64, factor=3),
    training: Trainer = symbolize(Trainer)(steps=200, schedule=symbolize(OneCycle)(), select="min", evaluate_every=20),
    batch_size: int = 32,
):
    """Forecast with Autoformer, beside the seasonal naive forecast, DLinear and Transformers.

    data: CSV or Parquet file with a column of dates; without one, weekly CO2 and half-hourly electricity demand.
    target: column(s) of the file to forecast, separated by commas; all numeric columns if not given.
    date: column of the dates; found if not given.
    id: column that names the series, if the file has several below each other.
    inputs: columns that help and whose future is unknown, separated by commas.
    known: columns that help and are known in advance, separated by commas; rows at the end with these alone are
        the future.
    freq: pandas frequency of the dates; inferred if not given.
    seq_len: steps looked at; from the season and the length of the data if not given.
    pred_len: steps forecast; likewise.
    model: the network.
    training: how each network is trained.
    batch_size: windows a step.
    """
    embedded = data is None
    for claim in CLAIMS:
        if claim.name.startswith("own_") == embedded:
            run.unmeasured(claim.name, why="needs data=FILE" if embedded else "it is about the embedded series")
    fixed: dict[str, Any] = dict(model=model, training=training, batch_size=batch_size)
    if data is None:
        sizes = {k: v for k, v in getattr(model, "keywords", {}).items() if k in ("dim", "heads", "ff", "enc_layers")}
        others = {"Transformer": partial(ForecastTransformer, **sizes)}
        ablation = {"self-attention": partial(model, mechanism=_attention)}
        mse = _compare(run, "CO2", [co2()], 104, 52, others | ablation, **fixed)[2]
        _measure(
            run, mse, naive="seasonal naive", transformer="Transformer", attention="self-attention", dlinear="DLinear"
        )
        _, splits, mse = _compare(run, "demand", [taylor()], 192, 96, others, **fixed)
        parts = (splits.train, splits.validation, splits.test)
        run.measure("periods", value=share_with_lag([part.all() for part in parts], (48, 144), factor=3))
        _measure(run, mse, demand_naive="seasonal naive", demand_transformer="Transformer", demand_dlinear="DLinear")
        return
    names = dict(inputs=_names(inputs), known=_names(known))
    series = data_series.read_series(data, _names(target) or None, date=date, id=id, freq=freq, **names)
    name = Path(data).stem
    seq_len, pred_len = report.sizes(series, seq_len, pred_len)
    if known and any(len(one.known) < len(one) + pred_len for one in series):
        raise ValueError(
            f"known: {known} must be given for {pred_len} steps past the end, as rows of {data} without a target"
        )
    run.note(f"{name}: {report.described(series)}; {seq_len} steps looked at, {pred_len} forecast.")
    trained, splits, mse = _compare(run, name, series, seq_len, pred_len, {}, **fixed)
    _measure(run, mse, own_naive="seasonal naive", own_dlinear="DLinear")
    shape: dict[str, Any] = dict(seq_len=seq_len, pred_len=pred_len, batch_size=batch_size)
    refit = Forecaster(model, trainer=training, **shape, seed=run.seed, device=str(run.device))
    refit.fit(series, folder=run.folder / "train" / name / "refit", progress=run.progress)
    future, rolled = refit.predict(), report.rolled_forecast(trained["Autoformer"], splits, series)
    table = report.forecast_table(series, splits, rolled, future)
    write_bytes(run.folder / "forecast.csv", table.to_csv(index=False).encode())
    run.figure(
        f"{name}_forecast", figures.forecast_figure(table, series[0], f"{name}: Autoformer, test part and past the end")
    )
    run.note("forecast.csv: the test part, and the steps past the end by a network trained again on the whole file.")


def _compare(
    run, name: str, series: list[TimeSeries], seq_len: int, pred_len: int, others, *, model, training, batch_size
):
    """Autoformer, the two compulsory baselines and `others` on the same windows: table, sentence and pictures."""
    splits = data_series.split_windows(series, seq_len=seq_len, pred_len=pred_len, split=data_series.split_of(name))
    season = min(season_length(series[0].freq), seq_len)
    models = {"seasonal naive": partial(SeasonalNaive, season=season), "DLinear": DLinear, "Autoformer": model} | others
    tuned = {"DLinear": replace(training, optimizer=partial(torch.optim.Adam, lr=5e-3))}  # a third better than at 1e-3
    trained, rows = report.compare(
        splits, models, training, tuned=tuned, batch_size=batch_size, folder=run.folder / "train" / name,
        progress=run.progress, device=run.device, seed=run.seed,
    )  # fmt: skip
    run.table(name, rows)
    run.note(report.comparison_sentence(name, rows, "Autoformer"))
    for picture, figure in figures.report_figures(trained, "Autoformer", splits, series[0], season, name).items():
        run.figure(f"{name}_{picture}", figure)
    return trained, splits, {row["model"]: row["MSE"] for row in rows}


def _measure(run, mse: dict[str, float], **baselines: str) -> None:
    ours = mse["Autoformer"]
    for claim, name in baselines.items():
        run.measure(claim, ours=ours, baseline=mse[name], value=ours / mse[name] if mse[name] else float("inf"))


def _attention(causal: bool) -> FullAttention:
    return FullAttention(causal=causal)


def _names(text: str | None) -> tuple[str, ...]:
    return tuple(name.strip() for name in (text or "").split(",") if name.strip())
