"""The made-up landscape: one truth for every sensor, projection and date, and files that say what they are."""

import numpy as np
import pytest
import rasterio

from flambeau.data.geo import RasterDataset, World, write_world
from flambeau.data.geo.grid import Grid
from flambeau.data.geo.prewarp import prewarp
from flambeau.data.geo.projection import as_crs, transformer
from flambeau.data.geo.sensors import Band, sensor


def test_the_truth_is_one_in_every_projection(frame_near):
    world = World(0)
    a, b = frame_near("EPSG:32615", width=60, height=60), frame_near("EPSG:5070", width=60, height=60)
    x, y = np.meshgrid(*b.centers())
    lon, lat = transformer(b.crs, as_crs("EPSG:4326")).transform(x, y)
    assert np.array_equal(world.truth_on(b), world.truth(lon, lat))
    assert np.array_equal(World(0).truth_on(a), world.truth_on(a))
    assert (World(1).truth_on(a) != world.truth_on(a)).mean() > 0.3
    wide = frame_near("EPSG:32615", lon=-90.1, lat=41.1, width=300, height=300, res=(60.0, 60.0))
    share = np.bincount(world.truth_on(wide).ravel(), minlength=7) / 300**2
    assert (share > 0.03).all(), "every class is somewhere"
    heights = world.elevation(*np.meshgrid(np.linspace(-90.1, -89.9, 50), np.linspace(40.9, 41.1, 50)))
    assert 20 < heights.std() < 120


def test_pairs_look_alike_in_the_visible_and_part_in_the_infrared(frame_near):
    world, frame = World(0), frame_near("EPSG:32615", width=250, height=250, res=(40.0, 40.0))
    bands = sensor("sentinel2")
    seen = world.reflectance(frame, bands, "2019-07-15")
    assert seen.shape == (13, 250, 250) and seen.dtype == np.float32
    truth = world.truth_on(frame)
    names = [band.common for band in bands]

    def apart(one, two, band):
        a, b = (seen[names.index(band)][truth == world.classes.index(name)] for name in (one, two))
        return abs(a.mean() - b.mean()) / np.sqrt((a.var() + b.var()) / 2)

    for pair, infrared in ((("broadleaf", "conifer"), "nir"), (("crop", "grass"), "nir"), (("soil", "built"), "swir1")):
        assert max(apart(*pair, band) for band in ("red", "green", "blue")) < 1 < 2 < apart(*pair, infrared)
    assert not np.allclose(world.reflectance(frame, bands, "2019-04-15"), seen, atol=0.05), "seasons"
    assert np.array_equal(world.reflectance(frame, bands, "2019-07-15"), seen)
    with pytest.raises(ValueError, match="must have wavelengths"):
        world.reflectance(frame, sensor("sentinel1"))


def test_any_sensor_at_any_resolution(tmp_path, frame_near):
    world = World(2)
    for name, epsg, res in (("naip", "EPSG:26915", 1.0), ("landsat8", "EPSG:5070", 30.0)):
        bands = [band for band in sensor(name) if band.center < 3]
        path = world.write_scene(
            tmp_path / f"{name}.tif", frame_near(epsg, width=40, height=30, res=(res, res)), bands=bands
        )
        with rasterio.open(path) as file:
            assert (
                file.descriptions == tuple(band.name for band in bands) and file.res == (res, res) and file.nodata == 0
            )
    hyper = [Band(f"H{n}", f"h{n}", 0.4 + 0.021 * n) for n in range(100)]
    world.write_scene(tmp_path / "hyper.tif", frame_near("EPSG:32615", width=8, height=8), bands=hyper)
    assert RasterDataset(tmp_path / "hyper.tif")[:]["image"].shape == (100, 8, 8)
    world.write_elevation(tmp_path / "dem.tif", frame_near("EPSG:4326", width=8, height=8, res=(1e-3, 1e-3)))
    assert RasterDataset(tmp_path / "dem.tif")[:]["image"].shape == (1, 8, 8)


def test_a_world_on_disk(tmp_path):
    files = write_world(tmp_path, World(0), size=96, rows=2, dates=("2019-06-20", "2019-07-25"))
    names = sorted(path.name for path in files.scenes.iterdir())
    assert len(names) == 8 and names[0] == "T15_0_20190620.tif" and len(files.tiles) == 4
    scenes = RasterDataset(files.scenes, regex=r"T\d\d_\d_(?P<date>\d{8})")
    labels = RasterDataset(files.labels, kind="mask", regex=r"labels_(?P<date>\d{4})", date_format="%Y")
    assert {header.projection.to_epsg() for row in scenes.index.rows for header in row.files} == {32615, 32616}
    assert len((scenes & labels).index) == 8
    gone = [1 - row.footprint.area / 960**2 for row in scenes.index.rows]
    assert max(gone) > 0.02 and min(gone) == 0, "some swaths leave a part out"
    with rasterio.open(files.labels) as file:
        assert file.crs == "EPSG:5070" and file.res == (30, 30) and file.colormap(1)[1][:3] == (39, 92, 158)


def test_scenes_warped_before_read_the_same(tmp_path):
    files = write_world(tmp_path, World(0), size=96, rows=1, dates=("2019-06-20", "2019-07-25"))
    far = RasterDataset(str(files.scenes / "T16_*.tif"), regex=r"T\d\d_\d_(?P<date>\d{8})", crs="EPSG:32615", res=10.0)
    before = RasterDataset(prewarp(far, tmp_path / "warped"), regex=r"T\d\d_\d_(?P<date>\d{8})")
    assert before.crs == far.crs and before.res == far.res and before.bands == far.bands and len(before.index) == 2
    grid = Grid(far.crs, far.grid.origin, 10.0, 10.0)
    frame = grid.frame_at(*grid.cell(far.bounds[0] + 200, far.bounds[3] - 200), 48, 48)
    for row in range(2):
        one = far.take([row]).read(frame, *far.span)
        two = before.take([row]).on(far.grid).read(frame, *far.span)
        both = one["valid"] & two["valid"]
        assert (
            both.float().mean() > 0.5 and (one["image"] - two["image"])[:, both].abs().max() <= 1.0
        )  # rounding, and GDAL's own approximation
    with pytest.raises(ValueError, match="does not hold"):
        prewarp(far, tmp_path / "small", dtype="uint8")
