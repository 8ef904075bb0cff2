"""Windows over series: scaled on the training part, split by time, gathered in one indexing, free of the future."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from flambeau.data.batches import Batches
from flambeau.data.series.frame import TimeSeries
from flambeau.data.series.frequency import offset_of, season_length
from flambeau.data.series.time_features import time_features
from flambeau.extras import require

SEVEN_ONE_TWO = (0.7, 0.1, 0.2)
ETT_HOURS = (12 * 30 * 24, 4 * 30 * 24, 4 * 30 * 24)
ETT_MINUTES = tuple(4 * rows for rows in ETT_HOURS)

NEVER = 2**62  # the row of a value that does not come

Rows = tuple[int, int]


@dataclass(frozen=True)
class SeriesScaler:
    """Mean and standard deviation of each column, from the training part alone; missing values do not count.

    Attributes:
        mean, std: of targets, then inputs. A constant column has std 1.
        known_mean, known_std: of the columns known in advance.
        seasonal_error: in-sample mean absolute error of the seasonal naive forecast, scaled, of each target: the
            denominator of MASE (Hyndman and Koehler 2006). NaN where the training part has no two equal phases.
    """

    mean: np.ndarray
    std: np.ndarray
    known_mean: np.ndarray
    known_std: np.ndarray
    seasonal_error: np.ndarray

    @classmethod
    def fit(cls, series: TimeSeries, rows: int, season: int | None = None) -> SeriesScaler:
        """From the first `rows` steps of a series.

        Raises:
            ValueError: a column without any value in them.
        """
        values = np.concatenate([series.targets, series.inputs], axis=1)[:rows]
        for name, empty in zip((*series.target_names, *series.input_names), np.isnan(values).all(axis=0)):
            if empty:
                raise ValueError(f"column {name!r} has no value in the {rows} steps to learn from")
        known = series.known[:rows]
        mean, std = np.nanmean(values, axis=0), _nonzero(np.nanstd(values, axis=0))
        season = season_length(series.freq) if season is None else season
        errors = np.abs(series.targets[season:rows] - series.targets[: max(0, rows - season)])
        present = ~np.isnan(errors)
        mean_error = np.divide(
            np.nansum(errors, axis=0),
            present.sum(axis=0),
            where=present.any(axis=0),
            out=np.full(errors.shape[1], np.nan),
        )
        seasonal_error = mean_error / std[: series.targets.shape[1]]
        return cls(mean, std, known.mean(axis=0), _nonzero(known.std(axis=0)), seasonal_error)

    def unscale(self, values: np.ndarray) -> np.ndarray:
        """Targets ``[..., target]`` in their own units."""
        targets = values.shape[-1]
        return values * self.std[:targets] + self.mean[:targets]


def _nonzero(std: np.ndarray) -> np.ndarray:
    return np.where(std > 1e-12, std, 1.0)


@dataclass(frozen=True)
class PreparedSeries:
    """A scaled series as tensors, with marks that go `horizon` steps past its end."""

    filled: Float[Tensor, "time column"]  # missing values interpolated between their neighbours
    held: Float[Tensor, "time column"]  # missing values hold the last one, for windows that end inside a gap
    next_seen: Int[Tensor, "time column"]  # step of the next value that is not missing
    seen: Float[Tensor, "time column"]
    marks: Float[Tensor, "timehorizon mark"]
    scaler: SeriesScaler
    targets: int


def prepare(series: TimeSeries, scaler: SeriesScaler, horizon: int) -> PreparedSeries:
    """Scale a series, fill its gaps and make its marks: time features and the columns known in advance.

    Args:
        horizon: steps past the end for which there are marks. Where the known columns do not reach, their last value is
            repeated; no window with a truth sees those.
    """
    pandas = require("pandas", "series")
    values = (np.concatenate([series.targets, series.inputs], axis=1) - scaler.mean) / scaler.std
    seen = ~np.isnan(values)
    table = pandas.DataFrame(values)
    steps = np.arange(len(values))[:, None]
    next_seen = np.minimum.accumulate(np.where(seen, steps, NEVER)[::-1], axis=0)[::-1].copy()
    length = len(series) + horizon
    times = pandas.date_range(series.times[0], periods=length, freq=offset_of(series.freq))
    known = series.known[np.minimum(np.arange(length), len(series.known) - 1)]
    known = (known - scaler.known_mean) / scaler.known_std
    return PreparedSeries(
        filled=_tensor(table.interpolate(limit_direction="both")),
        held=_tensor(table.ffill().fillna(0.0)),
        next_seen=torch.from_numpy(next_seen),
        seen=_tensor(seen),
        marks=_tensor(np.concatenate([time_features(times, series.freq), known], axis=1)),
        scaler=scaler,
        targets=series.targets.shape[1],
    )


def _tensor(values: Any) -> Tensor:
    return torch.from_numpy(np.array(values, dtype=np.float32))


class Windows:
    """All windows of `seq_len` steps and the `pred_len` that follow, within given rows of some series.

    A value that is missing enters as the interpolation between its neighbours, or as the last value before it where the
    next lies after the window's end: a window never depends on what follows it. If `mask`, channels after the others
    are 1 where a value was missing.

    Args:
        series: of equal columns.
        rows: for each, the ``(first, last)`` row a window may touch, `last` exclusive. Marks may reach past the end.
        label_len: steps of the window's end that `y_mark` begins with.
    """

    def __init__(
        self,
        series: Sequence[PreparedSeries],
        rows: Sequence[Rows],
        *,
        seq_len: int,
        label_len: int,
        pred_len: int,
        mask: bool,
    ):
        self.series, self.seq_len, self.label_len, self.pred_len, self.mask = (
            tuple(series),
            seq_len,
            label_len,
            pred_len,
            mask,
        )
        lengths = [len(s.marks) for s in series]
        offsets = np.cumsum([0, *lengths[:-1]]).tolist()

        def join(name: str, fill: float = 0.0) -> Tensor:
            parts = [getattr(s, name) for s in series]
            parts = [torch.cat([p, p.new_full((n - len(p), p.shape[1]), fill)]) for p, n in zip(parts, lengths)]
            return torch.cat(parts)

        self.filled, self.held, self.seen, self.marks = (join(name) for name in ("filled", "held", "seen", "marks"))
        later = [s.next_seen + offset for s, offset in zip(series, offsets)]
        self.next_seen = torch.cat(
            [torch.cat([p, p.new_zeros(n - len(p), p.shape[1])]) for p, n in zip(later, lengths)]
        )
        starts = [
            torch.arange(max(0, last - first - seq_len - pred_len + 1)) + first + offset
            for (first, last), offset in zip(rows, offsets)
        ]
        self.starts = torch.cat(starts)
        self.owner = torch.cat([torch.full((len(s),), i) for i, s in enumerate(starts)])
        self.offsets = offsets
        self.targets = series[0].targets

    def __len__(self) -> int:
        return len(self.starts)

    def first_rows(self) -> Int[Tensor, " window"]:
        """The row of its series at which each window begins; its forecast begins `seq_len` later."""
        return self.starts - torch.tensor(self.offsets)[self.owner]

    @property
    def channels(self) -> int:
        """Width of ``x``: targets, inputs and, with a mask, as many again."""
        return self.filled.shape[1] * (2 if self.mask else 1)

    def take(self, index: Int[Tensor, " batch"]) -> dict[str, Tensor]:
        """Windows by number, scaled.

        Returns:
            ``x [batch, seq, channel]``, ``x_mark [batch, seq, mark]``, ``y_mark [batch, label + pred, mark]``, ``y``
            and ``y_seen`` (1 where it is not missing) ``[batch, pred, target]``, and ``series [batch]``.
        """
        starts = self.starts[index].unsqueeze(1)
        past = starts + torch.arange(self.seq_len)
        ahead = starts + self.seq_len + torch.arange(self.pred_len)
        around = starts + self.seq_len + torch.arange(-self.label_len, self.pred_len)
        x = torch.where(self.next_seen[past] < (starts + self.seq_len).unsqueeze(2), self.filled[past], self.held[past])
        if self.mask:
            x = torch.cat([x, 1 - self.seen[past]], dim=-1)
        return {
            "x": x,
            "x_mark": self.marks[past],
            "y_mark": self.marks[around],
            "y": self.filled[ahead][..., : self.targets],
            "y_seen": self.seen[ahead][..., : self.targets],
            "series": self.owner[index],
        }

    def batches(self, batch_size: int) -> Batches:
        """Shuffled batches to train on; none of an epoch's windows is dropped."""
        return Batches(torch.arange(len(self)), batch_size, drop_last=False, transform=self._take)

    def all(self, batch_size: int = 256) -> Iterator[dict[str, Tensor]]:
        """Every window once, in order."""
        for index in torch.arange(len(self)).split(batch_size):
            yield self.take(index)

    def _take(self, index: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        return self.take(index)


def split_rows(length: int, seq_len: int, split: Sequence[float] = SEVEN_ONE_TWO) -> tuple[Rows, Rows, Rows]:
    """Rows of the training, validation and test part; the latter two begin `seq_len` rows early, for their past.

    Fractions are truncated for training and test, and validation has the rest; whole numbers are rows, as in the ETT
    protocol (12, 4 and 4 months of 30 days), and what is beyond them is not used. Both as in thuml/Autoformer.

    Raises:
        ValueError: not three positive parts.
    """
    if len(split) != 3 or min(split) <= 0:
        raise ValueError(f"split must be three positive parts (train, validation, test), got {tuple(split)}")
    if all(isinstance(part, int) for part in split):
        train, validation, test = (int(part) for part in split)
    elif sum(split) > 1 + 1e-9:
        raise ValueError(f"split must be fractions that sum to at most 1 or whole numbers of rows, got {tuple(split)}")
    else:
        train, test = int(length * split[0]), int(length * split[2])
        validation = length - train - test
    end = train + validation
    return (0, train), (train - seq_len, end), (end - seq_len, end + test)


def split_of(name: str) -> Sequence[float]:
    """The split that the literature uses for a file of that name: by months for ``ETTh*`` and ``ETTm*``, else 7:1:2."""
    return {"ETTh": ETT_HOURS, "ETTm": ETT_MINUTES}.get(name[:4], SEVEN_ONE_TWO)


def minimum_length(seq_len: int, pred_len: int, split: Sequence[float] = SEVEN_ONE_TWO) -> int:
    """Steps a series needs so that every part of the split has a window."""
    if all(isinstance(part, int) for part in split):
        return int(sum(split))
    length = seq_len + 3 * pred_len
    while any(last - max(first, 0) < seq_len + pred_len for first, last in split_rows(length, seq_len, split)):
        length += 1
    return length


@dataclass(frozen=True)
class Splits:
    """Windows of the three parts, and the scalers they were scaled with."""

    train: Windows
    validation: Windows
    test: Windows
    scalers: tuple[SeriesScaler, ...]


def split_windows(
    series: Sequence[TimeSeries],
    *,
    seq_len: int,
    pred_len: int,
    label_len: int | None = None,
    split: Sequence[float] = SEVEN_ONE_TWO,
    season: int | None = None,
) -> Splits:
    """Scale each series on its own training part and cut windows of every part.

    Args:
        label_len: half of `seq_len` if not given.
        season: of the scale of MASE; that of the frequency if not given.

    Raises:
        ValueError: sizes below 1, or a series too short for them; the message states the minimum.
    """
    label_len = seq_len // 2 if label_len is None else label_len
    if seq_len < 2 or pred_len < 1:
        raise ValueError(f"seq_len must be at least 2 and pred_len at least 1, got {seq_len} and {pred_len}")
    needed = minimum_length(seq_len, pred_len, split)
    for one in series:
        if len(one) < needed:
            name = f"series {one.id!r}" if one.id else "the series"
            raise ValueError(
                f"{name} has {len(one)} steps; seq_len {seq_len} and pred_len {pred_len} with the split "
                f"{':'.join(f'{part:g}' for part in split)} need at least {needed}"
            )
    rows = [split_rows(len(one), seq_len, split) for one in series]
    scalers = tuple(SeriesScaler.fit(one, parts[0][1], season) for one, parts in zip(series, rows))
    prepared = [prepare(one, scaler, pred_len) for one, scaler in zip(series, scalers)]
    mask = any(not bool(one.seen.all()) for one in prepared)
    train, validation, test = (
        Windows(
            prepared, [parts[i] for parts in rows], seq_len=seq_len, label_len=label_len, pred_len=pred_len, mask=mask
        )
        for i in range(3)
    )
    return Splits(train, validation, test, scalers)
