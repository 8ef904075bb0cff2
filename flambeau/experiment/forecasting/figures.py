"""Pictures of forecasts: a window beside its truth, a test part, the lags and the parts a network saw."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from flambeau.data.series import Splits, TimeSeries
from flambeau.models.series import Autoformer
from flambeau.models.series.reports import decomposition_report, lag_report
from flambeau.training.forecasting import forecast

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def report_figures(
    models: Mapping[str, nn.Module], ours: str, splits: Splits, one: TimeSeries, season: int, title: str
) -> dict[str, Figure]:
    """One test window forecast by all models, and the lags and parts of the model `ours` if it is an Autoformer."""
    pictures = {"window": window_figure(models, splits, one, f"{title}: the last test window")}
    model = models[ours]
    if not isinstance(model, Autoformer):
        return pictures
    device = next(model.parameters()).device
    window = splits.test.take(torch.arange(min(128, len(splits.test))))
    window = {key: value.to(device) for key, value in window.items()}
    lags, parts = lag_report(model, window), decomposition_report(model, window)
    if lags:
        title_of_lags = f"{title}: lags that Auto-Correlation chose in {len(window['x'])} test windows"
        pictures["lags"] = lag_figure(lags, season, title_of_lags)
    title_of_parts = f"{title}: trend and seasonal part of the first test window, layer by layer"
    return pictures | {"parts": decomposition_figure(parts, title_of_parts)}


def window_figure(models: Mapping[str, nn.Module], splits: Splits, one: TimeSeries, title: str) -> Figure:
    """The last test window of the first series: its past, what followed, and what each model forecast."""
    windows = splits.test
    index = int((windows.owner == 0).nonzero()[-1])
    row = int(windows.first_rows()[index])
    begin = row + windows.seq_len
    figure, axes = _figure()
    shown = slice(max(row, begin - 2 * windows.pred_len), begin + windows.pred_len)
    axes.plot(one.times[shown], one.targets[shown, 0], color="black", linewidth=1.5, label="truth")
    for name, model in models.items():
        out = splits.scalers[0].unscale(forecast(model, windows)[index].numpy())
        axes.plot(one.times[begin : begin + windows.pred_len], out[:, 0], linewidth=1.2, label=name)
    axes.axvline(one.times[begin - 1], color="grey", linewidth=0.8)
    return _dress(figure, axes, title, one.target_names[0])


def forecast_figure(table: Any, one: TimeSeries, title: str) -> Figure:
    """The first target of a series from :func:`forecast_table`: test part with its forecast, and past the end."""
    rows = table[table["target"] == one.target_names[0]]
    rows = rows[rows[one.id_name] == one.id] if one.id_name in rows.columns else rows
    figure, axes = _figure()
    for part, label in (("test", "forecast of the test part"), ("future", "forecast past the end")):
        shown = rows[rows["part"] == part]
        if part == "test":
            axes.plot(shown[one.date_name], shown["truth"], color="black", label="truth")
        axes.plot(shown[one.date_name], shown["forecast"], label=label)
    return _dress(figure, axes, title, one.target_names[0])


def lag_figure(reports: Mapping[str, tuple[Tensor, Tensor]], season: int, title: str) -> Figure:
    """How often each lag was chosen, for each layer."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1.5 * len(reports) + 0.6))
    panels = figure.subplots(len(reports), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (name, (lags, _)) in zip(panels, reports.items()):
        counts = torch.bincount(lags.flatten().cpu()) / len(lags)
        axes.vlines(range(len(counts)), 0, counts.numpy(), linewidth=1.5)
        for multiple in range(season, len(counts), season):
            axes.axvline(multiple, color="grey", linewidth=0.6, linestyle=":")
        axes.set_title(name, fontsize=8, loc="left", pad=2)
    panels[-1].set_xlabel("lag in steps (dotted: multiples of the season); height: share of windows that chose it")
    figure.suptitle(title, fontsize=10)
    return figure


def decomposition_figure(parts: Mapping[str, tuple[Tensor, Tensor]], title: str) -> Figure:
    """Trend and seasonal part of one window after every decomposition (mean over channels) and of its forecast."""
    from matplotlib.figure import Figure

    rows = -(-len(parts) // 3)
    figure = Figure(figsize=(9, 1.6 * rows + 0.4))
    panels = figure.subplots(rows, 3, squeeze=False).flat
    for axes, (name, (seasonal, trend)) in zip(panels, parts.items()):
        axes.plot(trend[0].mean(-1).cpu().numpy(), label="trend")
        axes.plot(seasonal[0].mean(-1).cpu().numpy(), label="seasonal")
        axes.set_title(name, fontsize=7, loc="left", pad=2)
    for axes in figure.axes:
        axes.set_xticks([])
        axes.set_yticks([])
    figure.axes[0].legend(fontsize=6)
    figure.suptitle(title, fontsize=10)
    return figure


def _figure() -> tuple[Figure, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4))
    return figure, figure.subplots()


def _dress(figure: Figure, axes: Any, title: str, unit: str) -> Figure:
    axes.set_title(title)
    axes.set_ylabel(unit)
    axes.legend()
    figure.autofmt_xdate()
    return figure
