"""Frequencies, seasons, sizes and calendar features."""

import numpy as np
import pytest

pd = pytest.importorskip("pandas", reason="the extra flambeau[series] is not installed")

from flambeau.data.series import default_sizes, infer_frequency, season_length, time_feature_names, time_features  # noqa: E402
from flambeau.data.series.frequency import offset_of  # noqa: E402

FREQUENCIES = "ms s 10s min 5min 15min 30min h 2h 6h D B W W-TUE 2W SMS MS ME QS QE-FEB YS YE".split()


@pytest.mark.parametrize("freq", FREQUENCIES)
def test_features_are_bounded_for_any_frequency(freq):
    found = time_features(pd.date_range("2023-12-30", periods=400, freq=freq), freq)
    assert found.shape == (400, len(time_feature_names(freq))) and np.isfinite(found).all()
    assert found.size == 0 or (found.min() >= -0.5 and found.max() <= 0.5)


def test_hourly_features_are_those_of_the_published_code():
    time = pd.DatetimeIndex(["2024-03-05 23:00"])  # a Tuesday, day 65 of the year
    np.testing.assert_allclose(time_features(time, "h")[0], [0.5, 1 / 6 - 0.5, 4 / 30 - 0.5, 64 / 365 - 0.5], rtol=1e-6)
    assert time_feature_names("W") == ("day of month", "week of year") and time_feature_names("ME") == (
        "month of year",
    )


@pytest.mark.parametrize(("old", "new"), [("H", "h"), ("T", "min"), ("M", "ME"), ("t", "min"), ("A", "YE")])
def test_old_aliases(old, new):
    assert offset_of(old) == offset_of(new)


def test_unknown_frequency():
    with pytest.raises(ValueError, match="freq must be a pandas frequency such as .* got 'hourly-ish'"):
        time_feature_names("hourly-ish")


@pytest.mark.parametrize(
    "freq", ["min", "30min", "h", "D", "B", "W-SAT", "2W-TUE", "MS", "ME", "QS-FEB", "QE-MAR", "YS-JAN", "2D"]
)
def test_frequency_is_inferred_through_gaps(freq):
    times = pd.date_range("2020-01-01", periods=60, freq=freq).delete([3, 10, 11, 40])
    found = infer_frequency(times)
    assert len(pd.date_range(times[0], times[-1], freq=found)) == 60
    assert times.isin(pd.date_range(times[0], times[-1], freq=found)).all()


def test_stamps_off_the_grid_are_listed():
    times = pd.date_range("2024-01-01", periods=20, freq="h").insert(5, pd.Timestamp("2024-01-01 04:17"))
    with pytest.raises(ValueError, match="1 are off it, first 2024-01-01 04:17:00"):
        infer_frequency(times)
    with pytest.raises(ValueError, match="at least 3"):
        infer_frequency(times[:2])


@pytest.mark.parametrize(
    ("freq", "season"),
    [
        ("s", 60),
        ("min", 60),
        ("5min", 288),
        ("30min", 48),
        ("h", 24),
        ("6h", 28),
        ("D", 7),
        ("B", 5),
        ("W", 52),
        ("MS", 12),
        ("QE", 4),
        ("YE", 1),
    ],
)
def test_seasons(freq, season):
    assert season_length(freq) == season


@pytest.mark.parametrize("freq", FREQUENCIES)
@pytest.mark.parametrize("length", [60, 300, 20000])
def test_default_sizes_fit_a_split(freq, length):
    from flambeau.data.series.windows import minimum_length

    seq_len, pred_len = default_sizes(freq, length)
    assert minimum_length(seq_len, pred_len) <= length


def test_default_sizes_of_known_series():
    assert default_sizes("W-SAT", 2284) == (104, 52) and default_sizes("30min", 4032) == (384, 96)
