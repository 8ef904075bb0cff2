"""Series from frames and files: what is wrong is said with its line and column, gaps become NaN."""

import numpy as np
import pytest

pd = pytest.importorskip("pandas", reason="the extra flambeau[series] is not installed")

from flambeau.data.series import co2, read_frame, read_series, series_from_frame, taylor  # noqa: E402
from flambeau.extras import require  # noqa: E402


def hourly(tmp_path, rows=30, name="load.csv", separator=",", change=None):
    times = pd.date_range("2024-01-01", periods=rows, freq="h")
    lines = [separator.join(("time", "MW", "temp", "station"))]
    lines += [separator.join((str(t), str(100 + i), str(i % 7), "north")) for i, t in enumerate(times)]
    for line, text in (change or {}).items():
        lines[line - 1] = text
    path = tmp_path / name
    path.write_text("\n".join(line for line in lines if line is not None) + "\n")
    return path


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_reads_csv(tmp_path, separator):
    (one,) = read_series(hourly(tmp_path, separator=separator), "MW")
    assert one.freq == "h" and len(one) == 30 and one.target_names == ("MW",)
    np.testing.assert_array_equal(one.targets[:, 0], np.arange(100, 130))


def test_reads_parquet(tmp_path):
    pytest.importorskip("pyarrow", reason="the extra flambeau[series] is not installed")
    frame = pd.DataFrame({"date": pd.date_range("2024-01-01", periods=20, freq="D"), "x": np.arange(20.0)})
    frame.to_parquet(tmp_path / "a.parquet")
    (one,) = read_series(tmp_path / "a.parquet")
    assert one.freq == "D" and one.target_names == ("x",)
    frame.astype({"x": object}).assign(x=["a"] + [1.0] * 19).astype({"x": str}).to_parquet(tmp_path / "b.parquet")
    with pytest.raises(ValueError, match=r"b.parquet: column 'x': 1 cells are not finite numbers \(row 0: 'a'\)"):
        read_series(tmp_path / "b.parquet", "x")
    (tmp_path / "c.parquet").write_bytes(b"no")
    with pytest.raises(ValueError, match="c.parquet: not a Parquet file"):
        read_frame(tmp_path / "c.parquet")


def test_all_numeric_columns_are_targets_without_a_target(tmp_path):
    (one,) = read_series(hourly(tmp_path))
    assert one.target_names == ("MW", "temp")  # "station" holds no numbers


def test_columns_have_their_roles(tmp_path):
    (one,) = read_series(hourly(tmp_path), "MW", inputs=["temp"])
    assert one.inputs.shape == (30, 1) and one.input_names == ("temp",)
    (one,) = read_series(hourly(tmp_path), "MW", known=["temp"])
    assert one.known.shape == (30, 1) and one.inputs.shape == (30, 0)


def test_missing_steps_and_empty_cells_are_nan(tmp_path):
    path = hourly(tmp_path, change={10: None, 15: "2024-01-01 13:00:00,,6,north", 20: ""})
    (one,) = read_series(path, "MW")
    assert len(one) == 30 and np.isnan(one.targets[[8, 13, 18], 0]).all() and np.isnan(one.targets).sum() == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {7: "2024-01-01 05:00:00,12x,5,north"},
            r"load.csv: column 'MW': 1 cells are not finite numbers \(line 7: '12x'\)",
        ),
        ({7: '2024-01-01 05:00:00,"1,5",5,north'}, r"line 7: '1,5'"),
        ({7: "2024-01-01 05:00:00,inf,5,north"}, r"line 7: 'inf'"),
        (
            {9: "yesterday,105,5,north"},
            r"column 'time': 1 cells are not dates in the format of the first \(line 9: 'yesterday'\)",
        ),
        (
            {9: "2024-01-01 06:00:00,105,5,north"},
            r"2 stamps repeat \(line 8: 2024-01-01 06:00:00; line 9: 2024-01-01 06:00:00\)",
        ),
        (
            {9: "2023-01-01 07:00:00,105,5,north"},
            r"go back in time \(line 9: 2023-01-01 07:00:00 after 2024-01-01 06:00:00\)",
        ),
        ({9: "2024-01-01 07:10:00,105,5,north"}, r"1 are off it, first 2024-01-01 07:10:00"),
        ({9: "2024-01-01 07:00:00,105,5,north,more"}, r"Expected 4 fields in line 9, saw 5"),
    ],
)
def test_says_what_is_wrong_and_where(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        read_series(hourly(tmp_path, change=change), "MW")


def test_blank_lines_do_not_shift_the_lines_of_messages(tmp_path):
    path = hourly(tmp_path, change={5: "", 12: "2024-01-01 10:00:00,bad,5,north"})
    with pytest.raises(ValueError, match="line 12: 'bad'"):
        read_series(path, "MW")


def test_unknown_columns_get_the_nearest_names(tmp_path):
    path = hourly(tmp_path)
    with pytest.raises(ValueError, match=r"no column 'mw' \(did you mean 'MW'\?\); there are time, MW, temp, station"):
        read_series(path, "mw")
    with pytest.raises(ValueError, match=r"no column 'tmie' \(did you mean 'time' or 'temp'\?\)"):
        read_series(path, "MW", date="tmie")
    with pytest.raises(ValueError, match=r"no column 'tmep' \(did you mean 'time' or 'temp'"):
        read_series(path, "MW", inputs=["tmep"])


def test_files_that_are_no_tables(tmp_path):
    with pytest.raises(FileNotFoundError, match="no.csv: no such file"):
        read_series(tmp_path / "no.csv")
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(ValueError, match="empty.csv: empty"):
        read_series(tmp_path / "empty.csv")
    (tmp_path / "x.xlsx").write_text("")
    with pytest.raises(ValueError, match="expected .csv, .tsv, .txt or .parquet, got '.xlsx'"):
        read_series(tmp_path / "x.xlsx")
    (tmp_path / "bytes.csv").write_bytes(b"a,b\n\xff\xfe,1\n")
    with pytest.raises(ValueError, match="bytes.csv"):
        read_series(tmp_path / "bytes.csv")


def test_the_hour_at_the_end_of_summer_time_is_refused_in_local_stamps():
    local = pd.date_range("2024-10-26", periods=48, freq="h", tz="Europe/London")
    frame = pd.DataFrame({"date": local.tz_localize(None).astype(str), "y": np.arange(48.0)})
    with pytest.raises(
        ValueError, match=r"2 stamps repeat \(row 25: 2024-10-27 01:00:00; row 26: .*end of summer time"
    ):
        series_from_frame(frame)
    with_offsets = pd.DataFrame({"date": [str(t) for t in local], "y": np.arange(48.0)})
    (one,) = series_from_frame(with_offsets)
    assert len(one) == 48 and one.freq == "h"


@pytest.mark.parametrize("order", ["%d/%m/%Y", "%m/%d/%Y", "%d.%m.%Y", "%Y-%m-%d", "%Y%m%d"])
@pytest.mark.parametrize("freq", ["D", "MS"])
def test_the_order_of_day_and_month_is_found(order, freq):
    times = pd.date_range("2020-01-01", periods=80, freq=freq)
    (one,) = series_from_frame(pd.DataFrame({"day": times.strftime(order), "y": range(80)}), date="day")
    assert one.freq == freq and (one.times == times).all()


def test_long_format_of_nixtla_needs_no_names():
    ds = pd.date_range("2024-01-01", periods=12, freq="MS")
    frame = pd.concat([pd.DataFrame({"unique_id": n, "ds": ds, "y": np.arange(12.0) + k}) for k, n in enumerate("ab")])
    one, two = series_from_frame(frame)
    assert (one.id, two.id, one.freq, one.target_names, one.date_name) == ("a", "b", "MS", ("y",), "ds")
    np.testing.assert_array_equal(two.targets[:, 0], np.arange(12.0) + 1)
    interleaved = frame.sort_values("ds", kind="stable")
    np.testing.assert_array_equal(series_from_frame(interleaved)[1].targets, two.targets)


def test_rows_that_have_only_known_columns_are_the_future():
    frame = pd.DataFrame(
        {"date": pd.date_range("2024-01-01", periods=10, freq="D"), "y": [1.0] * 8 + [np.nan] * 2, "holiday": range(10)}
    )
    (one,) = series_from_frame(frame, "y", known=["holiday"])
    assert len(one) == 8 and one.known[:, 0].tolist() == list(range(10))


def test_embedded_series():
    pytest.importorskip("statsmodels", reason="the extra flambeau[series] is not installed")
    pytest.importorskip("pmdarima", reason="the extra flambeau[series] is not installed")
    weekly, demand = co2(), taylor()
    assert (
        len(weekly) == 2284 and np.isnan(weekly.targets).sum() == 59 and weekly.times[0] == pd.Timestamp("1958-03-29")
    )
    assert len(demand) == 4032 and demand.targets[0, 0] == 22262


def test_a_missing_extra_is_named_with_the_pip_line():
    with pytest.raises(ModuleNotFoundError, match=r"this needs no_such_package: pip install 'flambeau\[series\]'"):
        require("no_such_package", "series")
