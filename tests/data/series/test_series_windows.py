"""Windows: exact splits, scaling on the training part, every window once, nothing of the future."""

from dataclasses import replace

import numpy as np
import pytest
import torch

pd = pytest.importorskip("pandas", reason="the extra flambeau[series] is not installed")

from flambeau.data.series import (  # noqa: E402  # noqa: E402
    ETT_HOURS,
    ETT_MINUTES,
    SeriesScaler,
    TimeSeries,
    Windows,
    prepare,
    split_of,
    split_rows,
    split_windows,
)


def make(length=200, targets=1, inputs=0, known=0, freq="h", seed=0, id=""):
    rng = np.random.default_rng(seed)
    names = lambda kind, n: tuple(f"{kind}{i}" for i in range(n))  # noqa: E731
    return TimeSeries(
        pd.date_range("2024-01-01", periods=length, freq=freq), freq,
        rng.normal(5, 3, (length, targets)), names("y", targets), rng.normal(size=(length, inputs)), names("u", inputs),
        rng.normal(size=(length, known)), names("k", known), id,
    )  # fmt: skip


def test_seven_one_two_is_that_of_the_published_code():
    assert split_rows(2284, 104) == ((0, 1598), (1494, 1828), (1724, 2284))  # 1598 = int(0.7 n), 456 = int(0.2 n)
    assert split_rows(17420, 96) == ((0, 12194), (12098, 13936), (13840, 17420))


def test_ett_months():
    assert split_of("ETTh1") == ETT_HOURS == (8640, 2880, 2880) and split_of("ETTm2") == ETT_MINUTES == (
        34560,
        11520,
        11520,
    )
    assert split_rows(17420, 96, ETT_HOURS) == ((0, 8640), (8544, 11520), (11424, 14400))
    assert split_of("load") == (0.7, 0.1, 0.2)


def test_every_window_of_a_part_is_there_once():
    one = make(500)
    splits = split_windows([one], seq_len=20, pred_len=5)
    for part, (first, last) in zip((splits.train, splits.validation, splits.test), split_rows(500, 20)):
        assert len(part) == last - first - 20 - 5 + 1
        assert sum(len(batch["x"]) for batch in part.all(7)) == len(part)
        assert part.first_rows().tolist() == list(range(first, last - 24))
    found = torch.cat(
        [
            splits.train.batches(32).batch(step, torch.Generator().manual_seed(0))["x"]
            for step in range(len(splits.train.batches(32)))
        ]
    )
    assert len(found) == len(splits.train)


def test_a_window_is_the_scaled_series():
    one = make(300, targets=2, inputs=1, known=1)
    splits = split_windows([one], seq_len=12, pred_len=4, label_len=5)
    scaler = splits.scalers[0]
    window = splits.test.take(torch.tensor([3]))
    row = int(splits.test.first_rows()[3])
    both = (np.concatenate([one.targets, one.inputs], 1) - scaler.mean) / scaler.std
    np.testing.assert_allclose(window["x"][0], both[row : row + 12], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(window["y"][0], both[row + 12 : row + 16, :2], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(scaler.unscale(window["y"][0].numpy()), one.targets[row + 12 : row + 16], rtol=1e-5)
    assert window["x_mark"].shape == (1, 12, 5) and window["y_mark"].shape == (1, 9, 5)
    torch.testing.assert_close(window["x_mark"][:, -5:], window["y_mark"][:, :5])


def test_scaler_sees_the_training_part_alone():
    one = make(300)
    later = one.targets.copy()
    later[210:] += 1000
    before, after = (split_windows([s], seq_len=12, pred_len=4) for s in (one, replace(one, targets=later)))
    np.testing.assert_array_equal(before.scalers[0].mean, after.scalers[0].mean)
    np.testing.assert_allclose(before.scalers[0].mean, one.targets[:210].mean(0))
    np.testing.assert_allclose(before.scalers[0].std, one.targets[:210].std(0))


def test_constant_column_is_not_divided_by_zero():
    one = replace(make(300), targets=np.full((300, 1), 7.0))
    assert split_windows([one], seq_len=12, pred_len=4).train.take(torch.arange(3))["x"].abs().max() == 0


def test_seasonal_error_is_that_of_repeating_the_last_season():
    one = make(300)
    scaler = SeriesScaler.fit(one, 210)
    y = one.targets[:210, 0]
    np.testing.assert_allclose(scaler.seasonal_error, np.abs(y[24:] - y[:-24]).mean() / y.std())


def test_gaps_are_interpolated_and_marked():
    one = make(300)
    one.targets[50:53] = np.nan
    splits = split_windows([one], seq_len=12, pred_len=4)
    index = int((splits.train.first_rows() == 45).nonzero())
    window = splits.train.take(torch.tensor([index]))
    assert window["x"].shape[-1] == 2 and window["x"][0, :, 1].tolist() == [0] * 5 + [1] * 3 + [0] * 4
    values = splits.scalers[0].unscale(window["x"][0, :, :1].numpy())[:, 0]
    np.testing.assert_allclose(values[5:8], np.interp([50, 51, 52], [49, 53], one.targets[[49, 53], 0]), rtol=1e-4)
    ahead = splits.train.take((splits.train.first_rows() == 37).nonzero()[0])
    assert ahead["y_seen"][0, :, 0].tolist() == [1, 0, 0, 0]


def test_no_window_depends_on_what_follows_it():
    """Through gaps too: a window that ends in one holds the last value instead of looking at the next."""
    one = make(300, targets=1, inputs=1)
    one.targets[[60, 61, 62, 63, 100], 0] = np.nan
    one.inputs[58:66] = np.nan
    for row in range(40, 90):
        end = row + 12
        changed = replace(one, targets=one.targets.copy(), inputs=one.inputs.copy())
        changed.targets[end:210] += 50.0 * ~np.isnan(changed.targets[end:210])
        changed.inputs[end:210] -= 50.0
        scaler = SeriesScaler.fit(one, 210)
        windows = [
            Windows([prepare(s, scaler, 4)], [(0, 300)], seq_len=12, label_len=6, pred_len=4, mask=True).take(
                torch.tensor([row])
            )
            for s in (one, changed)
        ]
        for name in ("x", "x_mark", "y_mark"):
            assert torch.equal(windows[0][name], windows[1][name]), (row, name)


def test_several_series_are_scaled_apart_and_do_not_mix():
    one, two = make(200, id="a"), make(260, seed=1, id="b")
    two = replace(two, targets=two.targets * 100)
    splits = split_windows([one, two], seq_len=12, pred_len=4)
    alone = [split_windows([s], seq_len=12, pred_len=4) for s in (one, two)]
    for part in ("train", "validation", "test"):
        together = torch.cat([batch["x"] for batch in getattr(splits, part).all()])
        apart = torch.cat([batch["x"] for s in alone for batch in getattr(s, part).all()])
        assert torch.equal(together, apart)


@pytest.mark.parametrize("split", [(0.7, 0.1, 0.2), (0.5, 0.25, 0.25)])
def test_too_short_series_state_the_minimum(split):
    with pytest.raises(ValueError, match="'a' has 100 steps; seq_len 48 and pred_len 24 .* need at least") as error:
        split_windows([make(100, id="a")], seq_len=48, pred_len=24, split=split)
    needed = int(str(error.value).split()[-1])
    splits = split_windows([make(needed)], seq_len=48, pred_len=24, split=split)
    assert min(len(part) for part in (splits.train, splits.validation, splits.test)) >= 1
    with pytest.raises(ValueError, match="need at least"):
        split_windows([make(needed - 1)], seq_len=48, pred_len=24, split=split)


def test_refuses_bad_sizes_and_splits():
    with pytest.raises(ValueError, match="seq_len must be at least 2 and pred_len at least 1, got 1 and 1"):
        split_windows([make()], seq_len=1, pred_len=1)
    with pytest.raises(ValueError, match="three positive parts"):
        split_rows(100, 10, (0.7, 0.3))
    with pytest.raises(ValueError, match="sum to at most 1"):
        split_rows(100, 10, (0.7, 0.3, 0.4))
    empty = make(300)
    empty.targets[:210] = np.nan
    with pytest.raises(ValueError, match="'y0' has no value in the 210 steps"):
        split_windows([empty], seq_len=12, pred_len=4)
