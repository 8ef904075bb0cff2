"""What every forecasting report has: a comparison with the forecasts that cost nothing, and forecasts as a table."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from flambeau.data.series import Splits, TimeSeries, default_sizes, season_length
from flambeau.extras import require
from flambeau.training.forecasting import fit_windows, forecast, forecaster_for, score
from flambeau.training.progress import Progress
from flambeau.training.trainer import Trainer


def compare(
    splits: Splits,
    models: Mapping[str, Callable[..., nn.Module]],
    trainer: Trainer,
    *,
    tuned: Mapping[str, Trainer] | None = None,
    batch_size: int = 32,
    folder: Path | None = None,
    progress: Progress | None = None,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> tuple[dict[str, nn.Module], list[dict[str, Any]]]:
    """Train each model on the same windows, from the same seed, and score it on all test windows.

    Args:
        tuned: trainers of the models, by name, that are not to be trained by `trainer`.

    Returns:
        The trained models, and a table with ``model``, ``MSE`` and ``MAE`` (scaled), ``MASE``, ``parameters`` and
        ``CPU s``, the processor time of training and test.
    """
    trained, rows = {}, []
    for name, build in models.items():
        torch.manual_seed(seed)
        model = forecaster_for(splits.train, build).to(device)
        began = time.process_time()
        fit_windows(
            model,
            splits.train,
            splits.validation,
            (tuned or {}).get(name, trainer),
            batch_size=batch_size,
            folder=None if folder is None else folder / name.replace(" ", "_"),
            progress=progress,
            seed=seed,
        )
        figures = score(model, splits.test)
        parameters = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        rows.append({"model": name, **figures, "parameters": parameters, "CPU s": time.process_time() - began})
        trained[name] = model
    return trained, rows


def rolled_forecast(model: nn.Module, splits: Splits, series: Sequence[TimeSeries]) -> list[np.ndarray]:
    """One forecast for every step of each series' test part, in its own units: a new origin every `pred_len` steps."""
    windows, found = splits.test, []
    scaled = forecast(model, windows).numpy()
    for i, scaler in enumerate(splits.scalers):
        own = scaled[windows.owner.numpy() == i]
        steps = np.empty((len(own) + windows.pred_len - 1, own.shape[2]))
        steps[-windows.pred_len :] = own[-1]
        for begin in range(0, len(own), windows.pred_len):
            steps[begin : begin + windows.pred_len] = own[begin]
        found.append(scaler.unscale(steps))
    return found


def forecast_table(series: Sequence[TimeSeries], splits: Splits, rolled: Sequence[np.ndarray], future: Any) -> Any:
    """Forecasts of the test part beside the truth, then those past the end, as one long ``pandas.DataFrame``.

    Args:
        rolled: from :func:`rolled_forecast`.
        future: from :meth:`~flambeau.training.estimators.forecaster.Forecaster.predict`.

    Returns:
        Columns id (of several series), date, ``part`` (``test`` or ``future``), ``target``, ``truth``, ``forecast``.
    """
    pandas, parts = require("pandas", "series"), []
    firsts = splits.test.first_rows()
    for i, (one, steps) in enumerate(zip(series, rolled)):
        begin = int(firsts[splits.test.owner == i][0]) + splits.test.seq_len
        ahead = future[future[one.id_name] == one.id] if len(series) > 1 else future
        for column, name in enumerate(one.target_names):
            truth = one.targets[begin : begin + len(steps), column]
            times = one.times[begin : begin + len(steps)]
            named = {one.id_name: one.id} if len(series) > 1 else {}
            common = {"target": name}
            parts.append(
                {**named, one.date_name: times, "part": "test", **common, "truth": truth, "forecast": steps[:, column]}
            )
            parts.append(
                {
                    **named,
                    one.date_name: ahead[one.date_name],
                    "part": "future",
                    **common,
                    "truth": np.nan,
                    "forecast": ahead[name],
                }
            )
    return pandas.concat([pandas.DataFrame(part) for part in parts], ignore_index=True)


def comparison_sentence(name: str, rows: Sequence[Mapping[str, Any]], ours: str) -> str:
    """Which of the other models of a comparison do better than `ours`, by test MSE."""
    mse = {row["model"]: row["MSE"] for row in rows}
    better = [other for other in mse if mse[other] < mse[ours]]
    figures = ", ".join(f"{model} {value:.3g}" for model, value in mse.items())
    return f"{name}: {' and '.join(better) or 'no other model'} had a lower test MSE than {ours} ({figures})."


def sizes(series: Sequence[TimeSeries], seq_len: int | None, pred_len: int | None) -> tuple[int, int]:
    """``(seq_len, pred_len)``; what is not given suits the frequency and the shortest series."""
    shortest = min(series, key=len)
    by_default = default_sizes(shortest.freq, len(shortest))
    return seq_len or by_default[0], pred_len or by_default[1]


def described(series: Sequence[TimeSeries]) -> str:
    """The size, step, season and gaps of some series, in words."""
    steps, missing = sum(map(len, series)), sum(int(np.isnan(one.targets).sum()) for one in series)
    many = f"{len(series)} series, " if len(series) > 1 else ""
    freq, targets = series[0].freq, ", ".join(series[0].target_names)
    return f"{many}{steps} steps of {freq} (season {season_length(freq)}) of {targets}, {missing} values missing"
