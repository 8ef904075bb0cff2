"""A forecaster for data frames: fit, predict past the end in the data's own units, backtest with refits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, clone
from torch import nn

from flambeau.data.series import SeriesScaler, TimeSeries, Windows, default_sizes, prepare, series_from_frame
from flambeau.data.series.frequency import offset_of
from flambeau.extras import require
from flambeau.models.series import Autoformer
from flambeau.objectives.forecasting import Output, PointForecast
from flambeau.training.forecasting import call, fit_windows, forecaster_for
from flambeau.training.progress import Progress
from flambeau.training.schedules import OneCycle
from flambeau.training.trainer import Trainer

SMALL_AUTOFORMER = partial(Autoformer, dim=32, heads=4, ff=64, factor=3)


class Forecaster(BaseEstimator):
    """Fit one model to the series of a frame and forecast them. Parameters and cloning as in scikit-learn.

    Args:
        model: ``model(c_in, c_out, seq_len=, label_len=, pred_len=, marks=, outputs=)`` builds a network.
        seq_len, pred_len: steps looked at and forecast at once; by default from the frequency and the length.
        label_len: steps of the window that start the decoder, half of `seq_len` by default.
        trainer: how to train; the last tenth of each series is held out to select the best weights.
        output: what the network forecasts: points, a Student-t distribution, quantiles.
        batch_size, seed, device: of the training.

    Attributes:
        series_: what was fitted. model_, scalers_, seq_len_, pred_len_, label_len_: the trained network and its shape.
    """

    def __init__(
        self,
        model: Callable[..., nn.Module] = SMALL_AUTOFORMER,
        *,
        seq_len: int | None = None,
        pred_len: int | None = None,
        label_len: int | None = None,
        trainer: Trainer = Trainer(steps=200, schedule=OneCycle(), select="min"),
        output: Output = PointForecast(),
        batch_size: int = 32,
        seed: int = 0,
        device: str = "cpu",
    ):
        self.model, self.seq_len, self.pred_len, self.label_len = model, seq_len, pred_len, label_len
        self.trainer, self.output, self.batch_size, self.seed, self.device = trainer, output, batch_size, seed, device

    def fit(
        self,
        frame: Any,
        target: str | Sequence[str] | None = None,
        *,
        date: str | None = None,
        id: str | None = None,
        inputs: Sequence[str] = (),
        known: Sequence[str] = (),
        freq: str | None = None,
        folder: Path | None = None,
        progress: Progress | None = None,
    ) -> Forecaster:
        """Train on a frame (see :func:`~flambeau.data.series.series_from_frame`) or on a list of series.

        Raises:
            ValueError: what is wrong with the data, or a series too short, with the minimum.
        """
        if isinstance(frame, (list, tuple)):
            self.series_: list[TimeSeries] = list(frame)
        else:
            self.series_ = series_from_frame(frame, target, date=date, id=id, inputs=inputs, known=known, freq=freq)
        shortest = min(self.series_, key=len)
        seq_len, pred_len = default_sizes(shortest.freq, len(shortest))
        self.seq_len_, self.pred_len_ = self.seq_len or seq_len, self.pred_len or pred_len
        self.label_len_ = self.seq_len_ // 2 if self.label_len is None else self.label_len
        needed = self.seq_len_ + 2 * self.pred_len_
        if len(shortest) < needed:
            raise ValueError(
                f"the series {shortest.id!r} has {len(shortest)} steps; seq_len {self.seq_len_} and pred_len "
                f"{self.pred_len_} need at least {needed}"
            )
        held_out = [max(self.pred_len_, len(one) // 10) for one in self.series_]
        held_out = [min(held, len(one) - self.seq_len_ - self.pred_len_) for held, one in zip(held_out, self.series_)]
        self.scalers_ = [SeriesScaler.fit(one, len(one) - held) for one, held in zip(self.series_, held_out)]
        self.mask_ = any(bool(np.isnan(values).any()) for one in self.series_ for values in (one.targets, one.inputs))
        train = self._windows(
            self.series_, [(0, len(one) - held) for one, held in zip(self.series_, held_out)], self.scalers_
        )
        ends = [(len(one) - held - self.seq_len_, len(one)) for one, held in zip(self.series_, held_out)]
        torch.manual_seed(self.seed)
        self.model_ = forecaster_for(train, self.model, self.output).to(self.device)
        self.fit_ = fit_windows(
            self.model_, train, self._windows(self.series_, ends, self.scalers_), self.trainer,
            output=self.output, batch_size=self.batch_size, folder=folder, progress=progress, seed=self.seed,
        )  # fmt: skip
        return self

    def predict(self, horizon: int | None = None, *, future: Any = None, levels: Sequence[float] = ()) -> Any:
        """Forecast `horizon` steps (by default `pred_len`) past the end of each series, in its own units.

        Beyond `pred_len` the forecasts themselves are the past of the next ones; this needs a model without inputs
        whose future is unknown.

        Args:
            future: frame of the columns known in advance for these steps, with the date column (and ids).
            levels: quantiles to add as columns ``TARGET-q0.1``; the output must have them.

        Returns:
            ``pandas.DataFrame``: id (of several series), date, targets, quantiles.

        Raises:
            ValueError: a horizon below 1 or not reachable, or `future` is missing or has no value for a step.
        """
        if not hasattr(self, "model_"):
            raise ValueError("this Forecaster is not fitted: call fit first")
        horizon = self.pred_len_ if horizon is None else horizon
        if horizon < 1:
            raise ValueError(f"horizon must be at least 1, got {horizon}")
        if horizon > self.pred_len_ and self.series_[0].input_names:
            raise ValueError(
                f"horizon must be at most pred_len = {self.pred_len_}, got {horizon}: the future of the inputs "
                f"{', '.join(self.series_[0].input_names)} is not known"
            )
        parts = [
            self._predict(one, scaler, horizon, future, levels) for one, scaler in zip(self.series_, self.scalers_)
        ]
        return require("pandas", "series").concat(parts, ignore_index=True)

    def backtest(
        self,
        frame: Any,
        target: str | Sequence[str] | None = None,
        *,
        horizon: int,
        origins: int = 3,
        step: int | None = None,
        **roles: Any,
    ) -> Any:
        """Rolling-origin evaluation: refit before each of the last `origins` cutoffs, then compare forecast and truth.

        Args:
            horizon: steps forecast from each cutoff.
            step: steps between cutoffs, `horizon` by default.
            roles: date, id, inputs, known, freq as in :meth:`fit`.

        Returns:
            ``pandas.DataFrame``: id, ``cutoff`` (the last stamp known), date, ``target``, ``truth`` and ``forecast``.
        """
        pandas = require("pandas", "series")
        series = list(frame) if isinstance(frame, (list, tuple)) else series_from_frame(frame, target, **roles)
        step, found = step or horizon, []
        for origin in range(origins - 1, -1, -1):
            cut = horizon + origin * step
            shortest = min(len(one) for one in series)
            if cut >= shortest:
                raise ValueError(
                    f"origins: {origins} of {horizon} steps need more than {cut} steps, the series has {shortest}"
                )
            fitted = clone(self).fit([_head(one, len(one) - cut) for one in series])
            forecasts = fitted.predict(horizon)
            for one in series:
                rows = forecasts[forecasts[one.id_name] == one.id] if len(series) > 1 else forecasts
                begin = len(one) - cut
                common = {one.id_name: one.id, "cutoff": one.times[begin - 1]}
                for column, name in enumerate(one.target_names):
                    truth = one.targets[begin : begin + horizon, column]
                    times, forecast = one.times[begin : begin + horizon], rows[name].to_numpy()
                    columns = {one.date_name: times, "target": name, "truth": truth, "forecast": forecast}
                    found.append(pandas.DataFrame(common | columns))
        return pandas.concat(found, ignore_index=True)

    def _windows(
        self, series: Sequence[TimeSeries], rows: Sequence[tuple[int, int]], scalers: Sequence[SeriesScaler]
    ) -> Windows:
        prepared = [prepare(one, scaler, self.pred_len_) for one, scaler in zip(series, scalers)]
        shape = dict(seq_len=self.seq_len_, label_len=self.label_len_, pred_len=self.pred_len_)
        return Windows(prepared, rows, **shape, mask=self.mask_)

    def _predict(
        self, one: TimeSeries, scaler: SeriesScaler, horizon: int, future: Any, levels: Sequence[float]
    ) -> Any:
        pandas = require("pandas", "series")
        times = pandas.date_range(one.times[-1], periods=horizon + 1, freq=offset_of(one.freq))[1:]
        extended = replace(one, known=_known_ahead(one, times, future))
        points, quantiles = [], []
        while len(extended) < len(one) + horizon:
            whole = (len(extended) - self.seq_len_, len(extended) + self.pred_len_)
            window = self._windows([extended], [whole], [scaler]).take(torch.tensor([0]))
            with torch.no_grad():
                out = call(self.model_, window).cpu()
            points.append(scaler.unscale(self.output.point(out)[0].double().numpy()))
            if levels:
                q = self.output.quantiles(out, levels)[0].double().numpy()
                quantiles.append(np.moveaxis(scaler.unscale(np.moveaxis(q, -1, 0)), 0, -1))
            extended = _append(extended, points[-1])
        columns: dict[str, Any] = {one.id_name: one.id} if len(self.series_) > 1 else {}
        columns[one.date_name] = times
        for i, name in enumerate(one.target_names):
            columns[name] = np.concatenate(points)[:horizon, i]
            for j, level in enumerate(levels):
                columns[f"{name}-q{level:g}"] = np.concatenate(quantiles)[:horizon, i, j]
        return pandas.DataFrame(columns)


def _head(one: TimeSeries, steps: int) -> TimeSeries:
    """The first `steps` of a series; what is known in advance stays known."""
    return replace(one, times=one.times[:steps], targets=one.targets[:steps], inputs=one.inputs[:steps])


def _append(one: TimeSeries, targets: np.ndarray) -> TimeSeries:
    steps = len(targets)
    times = require("pandas", "series").date_range(one.times[0], periods=len(one) + steps, freq=offset_of(one.freq))
    inputs = np.concatenate([one.inputs, np.full((steps, one.inputs.shape[1]), np.nan)])
    return replace(one, times=times, targets=np.concatenate([one.targets, targets]), inputs=inputs)


def _known_ahead(one: TimeSeries, times: Any, future: Any) -> np.ndarray:
    """The columns known in advance up to the last of `times`, from the series itself or from the frame `future`."""
    if not one.known_names or (future is None and len(one.known) >= len(one) + len(times)):
        return one.known
    if future is None:
        raise ValueError(f"future must give {', '.join(one.known_names)} from {times[0]} to {times[-1]}, got None")
    absent = [name for name in (one.date_name, *one.known_names) if name not in future.columns]
    if absent:
        raise ValueError(f"future has no column {', '.join(absent)}; there are {', '.join(map(str, future.columns))}")
    rows = future[future[one.id_name].astype(str) == one.id] if one.id and one.id_name in future.columns else future
    stamps = require("pandas", "series").to_datetime(rows[one.date_name]).to_numpy()
    table = rows[list(one.known_names)].set_axis(stamps, axis=0).reindex(times)
    missing = times[table.isna().any(axis=1).to_numpy()]
    if len(missing):
        raise ValueError(
            f"future has no value of {', '.join(one.known_names)} for {len(missing)} steps, first {missing[0]}"
        )
    return np.concatenate([one.known[: len(one)], table.to_numpy(dtype=float)])
