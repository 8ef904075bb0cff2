"""The algebra of joins: what a & b and a | b cover, in what order, and that nothing joined is changed."""

import copy

import numpy as np
import pytest
import shapely
import torch

from flambeau.data.geo import IntersectionDataset, RasterDataset
from flambeau.data.geo.grid import Grid
from flambeau.data.geo.index import make_index, overlay
from flambeau.data.geo.projection import as_crs, transform_polygon
from flambeau.data.geo.times import as_interval, as_time, interval_of
from flambeau.data.geo.world import write_geotiff

DATED = r"\w_(?P<date>\d{8})"


@pytest.fixture
def three(tmp_path, frame_near):
    """Datasets a (UTM 15, 10 m), b (UTM 16, 20 m) and c (Albers, 30 m) that overlap in part."""
    places = {
        "a": ("EPSG:32615", -90.00, 41.0, 10.0),
        "b": ("EPSG:32616", -89.99, 40.995, 20.0),
        "c": ("EPSG:5070", -90.01, 41.0, 30.0),
    }
    datasets = {}
    for value, (name, (epsg, lon, lat, res)) in enumerate(places.items(), 1):
        frame = frame_near(epsg, lon, lat, width=round(2400 / res), height=round(2400 / res), res=(res, res))
        write_geotiff(
            tmp_path / name / f"{name}_20190101.tif", np.full((1, frame.height, frame.width), value, np.uint8), frame
        )
        datasets[name] = RasterDataset(tmp_path / name, regex=DATED)
    return datasets


def test_an_intersection_covers_what_shapely_says(three):
    a, b = three["a"], three["b"]
    joined = a & b
    moved = transform_polygon(b.index.rows[0].footprint, b.crs, a.crs)
    expected = shapely.intersection(a.index.geometry[0], moved)
    assert np.allclose(joined.bounds, expected.bounds, atol=1e-6)
    assert shapely.symmetric_difference(joined.index.region, expected).area < 1e-6 * expected.area
    other = transform_polygon((b & a).index.region, b.crs, a.crs)
    assert shapely.symmetric_difference(other, expected).area < 1e-4 * expected.area
    assert joined.crs == a.crs and joined.res == a.res and (b & a).res == b.res


def test_intersection_is_associative_and_changes_nothing(three):
    a, b, c = three["a"], three["b"], three["c"]
    before = {name: (ds.crs, ds.res, ds.bounds, copy.copy(ds.index.geometry)) for name, ds in three.items()}
    left, right = (a & b) & c, a & (b & c)
    assert shapely.symmetric_difference(left.index.region, right.index.region).area < 1e-6 * left.index.region.area
    box = left.index.region.centroid.buffer(200).bounds
    one, two = left[box[0] : box[2], box[1] : box[3]], right[box[0] : box[2], box[1] : box[3]]
    assert (
        one["image"].shape[0] == 3
        and torch.equal(one["image"], two["image"])
        and torch.equal(one["valid"], two["valid"])
    )
    assert one["image"].flatten(1).median(1).values.tolist() == [1, 2, 3]
    assert one["meta"]["files"] == two["meta"]["files"] and len(one["meta"]["files"]) == 3
    assert one["meta"]["times"][0] == ("2019-01-01T00:00:00.000000", "2019-01-01T23:59:59.999999")
    for name, ds in three.items():
        crs, res, bounds, geometry = before[name]
        assert (ds.crs, ds.res, ds.bounds) == (crs, res, bounds) and shapely.equals(ds.index.geometry, geometry).all()


def test_joined_layers_share_their_pixel_edges(three):
    joined = three["a"] & three["c"]
    box = joined.index.region.centroid.buffer(333).bounds
    sample = joined[box[0] : box[2], box[1] : box[3]]
    grid = three["a"].grid
    assert grid.cells(sample["meta"]["bounds"]) == grid.cells(sample["meta"]["bounds"], cover=True)
    assert sample["image"].shape[0] == 2


def test_a_union_fills_in_and_keeps_both(tmp_path, frame_near):
    frame = frame_near("EPSG:32615", width=40, height=40)
    beside = Grid(frame.crs, (frame.left, frame.top), 10.0, 10.0).frame_at(20, 0, 40, 40)
    for name, value, where in (("a", 1.0, frame), ("b", 2.0, beside)):
        write_geotiff(tmp_path / name / f"{name}_20190101.tif", np.full((1, 40, 40), value, np.float32), where)
    a, b = RasterDataset(tmp_path / "a", regex=DATED), RasterDataset(tmp_path / "b", regex=DATED)
    sample = (a | b)[:]
    assert sample["image"].shape == (1, 40, 60) and bool(sample["valid"].all())
    assert (sample["image"][0, :, :40] == 1).all() and (sample["image"][0, :, 40:] == 2).all()
    assert ((b | a)[:]["image"][0, :, 20:] == 2).all()
    assert (a | b)[frame.left + 450 :, :]["meta"]["files"] == [str(tmp_path / "b" / "b_20190101.tif")]
    both = (a | b) & a
    assert both.bounds == a.bounds and both[:]["image"].shape == (2, 40, 40)
    with pytest.raises(ValueError, match="cannot unite image"):
        a | RasterDataset(tmp_path / "b", kind="mask", regex=DATED)


def test_disjoint_joins_say_in_which_axis(tmp_path, frame_near):
    def one(name, lon, lat, date):
        frame = frame_near("EPSG:32615", lon, lat, width=20, height=20)
        write_geotiff(tmp_path / name / f"{name}_{date}.tif", np.ones((1, 20, 20), np.uint8), frame)
        return RasterDataset(tmp_path / name, regex=DATED)

    a = one("a", -90, 41, "20190101")
    with pytest.raises(ValueError, match="apart along x"):
        a & one("b", -91, 41, "20190101")
    with pytest.raises(ValueError, match="apart along y"):
        a & one("c", -90, 41.01, "20190101")
    later = one("d", -90, 41, "20200101")
    with pytest.raises(ValueError, match="apart in time: .*spatial_only"):
        a & later
    anyway = IntersectionDataset(a, later, spatial_only=True)
    assert anyway[:]["image"].shape == (2, 20, 20)
    assert anyway.interval == a.interval


def test_the_overlay_of_200_random_intervals_is_that_of_brute_force():
    rng = np.random.default_rng(0)
    crs = as_crs("EPSG:32615")

    def rows():
        made = []
        for number in range(200):
            x, y = rng.uniform(0, 300, 2)
            begin, days = (
                np.datetime64("2019-01-01", "us") + np.timedelta64(int(rng.integers(300)), "D"),
                int(rng.integers(20)),
            )
            made.append((shapely.box(x, y, x + 60, y + 60), begin, begin + np.timedelta64(days, "D"), number))
        return make_index(crs, made)

    a, b = rows(), rows()
    joined = overlay(a, b)
    expected = {
        (a.rows[i], b.rows[j]): (max(a.start[i], b.start[j]), min(a.stop[i], b.stop[j]))
        for i in range(200)
        for j in range(200)
        if a.geometry[i].intersection(b.geometry[j]).area > 0
        and max(a.start[i], b.start[j]) <= min(a.stop[i], b.stop[j])
    }
    assert dict(zip(joined.rows, zip(joined.start, joined.stop))) == expected and len(expected) > 100
    for _ in range(50):
        x, y = rng.uniform(0, 300, 2)
        begin = np.datetime64("2019-01-01", "us") + np.timedelta64(int(rng.integers(300)), "D")
        found = set(a.query((x, y, x + 30, y + 30), begin, begin + np.timedelta64(9, "D")).tolist())
        brute = {
            i
            for i in range(200)
            if a.geometry[i].intersects(shapely.box(x, y, x + 30, y + 30))
            and a.start[i] <= begin + np.timedelta64(9, "D")
            and a.stop[i] >= begin
        }
        assert found == brute


def test_dates_stand_for_all_they_name():
    def text(date, date_format):
        return tuple(str(time)[:19] for time in interval_of(date, date_format))

    assert text("2019", "%Y") == ("2019-01-01T00:00:00", "2019-12-31T23:59:59")
    assert text("201902", "%Y%m") == ("2019-02-01T00:00:00", "2019-02-28T23:59:59")
    assert text("2019045", "%Y%j") == ("2019-02-14T00:00:00", "2019-02-14T23:59:59")
    assert text("20190214T101112", "%Y%m%dT%H%M%S") == ("2019-02-14T10:11:12", "2019-02-14T10:11:12")
    assert as_time("2019-02-14T12:00:00+02:00") == np.datetime64("2019-02-14T10:00:00")
    assert str(as_interval("2019-01-01", "2019-01-31")[1]) == "2019-01-31T23:59:59.999999"
    for bad in ("yesterday", 3.5, None):
        with pytest.raises(ValueError, match="time must be"):
            as_time(bad)
    with pytest.raises(ValueError, match="must not end before"):
        as_interval("2020-01-01", "2019-01-01")
