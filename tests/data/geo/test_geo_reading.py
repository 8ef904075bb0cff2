"""Where pixels come from: bit-exact when aligned, within a fraction of a pixel when warped, never from nodata."""

import numpy as np
import pytest
import rasterio
import shapely
import torch

from flambeau.data.geo import Query, RasterDataset
from flambeau.data.geo.grid import Frame, Grid
from flambeau.data.geo.projection import as_crs, transform_bounds, transform_polygon, transformer
from flambeau.data.geo.warp import source_mesh, torch_warp
from flambeau.data.geo.world import write_geotiff

UTM15, UTM16, ALBERS, WGS84 = "EPSG:32615", "EPSG:32616", "EPSG:5070", "EPSG:4326"


def test_a_snapped_chip_is_bit_exact(tmp_path, frame_near, write_coordinates):
    frame = frame_near(UTM15)
    write_coordinates(tmp_path / "a.tif", frame)
    ds = RasterDataset(tmp_path, dtype=torch.float64)
    left, bottom, right, top = ds.bounds
    assert (left, bottom, right, top) == frame.bounds and ds.res == (10.0, 10.0)
    x, y = frame.centers()
    for dx, dy in ((30, 20), (34.9, 17.0), (25.1, 24.9)):  # all snap to column 3, row 2
        sample = ds[left + dx : left + dx + 640, top - dy - 480 : top - dy]
        assert sample["image"].shape == (2, 48, 64) and bool(sample["valid"].all())
        assert np.array_equal(sample["image"][0, 0], x[3:67]) and np.array_equal(sample["image"][1, :, 0], y[2:50])
    assert sample["meta"]["bounds"] == (left + 30, top - 500, left + 670, top - 20)


@pytest.mark.parametrize("warp", ["gdal", "torch"])
def test_an_unsnapped_chip_is_interpolated_to_a_thousandth_of_a_pixel(tmp_path, frame_near, write_coordinates, warp):
    frame = frame_near(UTM15)
    write_coordinates(tmp_path / "a.tif", frame)
    ds = RasterDataset(tmp_path, dtype=torch.float64, snap=False, warp=warp)
    left, _, _, top = ds.bounds
    sample = ds[left + 103.3 : left + 743.3, top - 587.7 : top - 107.7]
    x = left + 103.3 + 10 * (np.arange(64) + 0.5)
    y = top - 107.7 - 10 * (np.arange(48) + 0.5)
    assert bool(sample["valid"].all())
    assert np.abs(sample["image"][0] - x).max() <= 1e-3 * 10
    assert np.abs(sample["image"][1] - y[:, None]).max() <= 1e-3 * 10


@pytest.mark.parametrize("warp", ["gdal", "torch"])
@pytest.mark.parametrize(
    ("source", "target"), [(UTM15, UTM16), (UTM16, UTM15), (UTM15, ALBERS), (ALBERS, UTM16), (UTM15, WGS84)]
)
def test_a_warped_chip_is_where_pyproj_says(tmp_path, frame_near, write_coordinates, source, target, warp):
    frame = frame_near(source)
    write_coordinates(tmp_path / "a.tif", frame)
    ds = RasterDataset(tmp_path, crs=target, dtype=torch.float64, warp=warp)
    sample = ds[ds.bounds[0] : ds.bounds[2], ds.bounds[1] : ds.bounds[3]]
    placed = ds.frame(Query())
    x, y = transformer(as_crs(target), as_crs(source)).transform(*np.meshgrid(*placed.centers()))
    inside = sample["valid"].numpy()
    error = np.hypot(sample["image"][0].numpy() - x, sample["image"][1].numpy() - y) / 10
    middle = shapely.box(*frame.bounds).buffer(-10)  # at the very edge the kernel repeats the last pixel
    inner = shapely.contains_xy(middle, x, y)
    assert inner.sum() > 20_000 and inside[inner].all()
    assert error[inner].max() <= 0.2
    outside = ~shapely.contains_xy(shapely.box(*frame.bounds).buffer(2), x, y)
    assert outside.sum() > 500 and not inside[outside].any()
    assert (sample["image"][:, ~sample["valid"]] == 0).all()


def test_labels_are_nearest_and_never_mixed(tmp_path, frame_near):
    frame = frame_near(ALBERS, res=(30.0, 30.0))
    labels = np.random.default_rng(0).choice([1, 5, 90], (1, frame.height, frame.width)).astype(np.uint8)
    write_geotiff(tmp_path / "a.tif", labels, frame, nodata=0)
    for warp in ("gdal", "torch"):
        ds = RasterDataset(tmp_path, kind="mask", crs=UTM15, res=10.0, warp=warp)
        sample = ds[ds.bounds[0] + 1000 : ds.bounds[0] + 2280, ds.bounds[1] + 1000 : ds.bounds[1] + 2280]
        assert sample["mask"].shape == (128, 128) and sample["mask"].dtype == torch.int64
        assert set(sample["mask"].unique().tolist()) == {1, 5, 90}
        placed = Grid(ds.crs, ds.grid.origin, 10.0, 10.0).frame(sample["meta"]["bounds"])
        x, y = transformer(ds.crs, frame.crs).transform(*np.meshgrid(*placed.centers()))
        column, row = (x - frame.left) / 30, (frame.top - y) / 30
        sure = np.maximum(abs(column % 1 - 0.5), abs(row % 1 - 0.5)) < 0.4  # not at the edge between two pixels
        expected = labels[0][row.astype(int), column.astype(int)]
        assert np.array_equal(sample["mask"].numpy()[sure], expected[sure])


def test_dtypes_and_scales(tmp_path, frame_near):
    frame = frame_near(UTM15, width=16, height=16)
    values = np.arange(256, dtype=np.int32).reshape(1, 16, 16) + 2_000_000_001
    write_geotiff(tmp_path / "int.tif", values, frame)
    assert np.array_equal(RasterDataset(tmp_path / "int.tif", dtype=torch.int64)[:]["image"], values)
    assert np.array_equal(RasterDataset(tmp_path / "int.tif", kind="mask")[:]["mask"], values[0])
    write_geotiff(tmp_path / "scaled.tif", (values - 2_000_000_000).astype(np.uint16), frame, nodata=7)
    with rasterio.open(tmp_path / "scaled.tif", "r+") as file:
        file.scales, file.offsets = (0.01,), (-0.1,)
    sample = RasterDataset(tmp_path / "scaled.tif")[:]
    assert sample["valid"].sum() == 255 and sample["image"][0, 0, 6] == 0
    expected = (values[0] - 2_000_000_000) * 0.01 - 0.1
    assert np.allclose(sample["image"][0][sample["valid"]], expected[sample["valid"]], atol=1e-5)


def test_four_tiles_make_the_raster_and_the_rule_of_overlaps(tmp_path, frame_near, write_coordinates):
    frame = frame_near(UTM15, width=100, height=80)
    grid = Grid(frame.crs, (frame.left, frame.top), 10.0, 10.0)
    for number, (column, row) in enumerate([(0, 0), (50, 0), (0, 40), (50, 40)]):
        write_coordinates(tmp_path / f"{number}.tif", grid.frame_at(column, row, 50, 40))
    write_coordinates(tmp_path / "whole" / "raster.tif", frame)
    tiles = RasterDataset([tmp_path / f"{n}.tif" for n in range(4)], dtype=torch.float64)
    whole = RasterDataset(tmp_path / "whole", dtype=torch.float64)
    assert torch.equal(tiles[:]["image"], whole[:]["image"]) and bool(tiles[:]["valid"].all())
    assert tiles[frame.left + 300 : frame.left + 450, :]["meta"]["files"] == [
        str(tmp_path / f"{n}.tif") for n in (0, 2)
    ]

    one = grid.frame_at(0, 0, 20, 20)
    hole = np.full((1, 20, 20), 3.0, np.float32)
    hole[:, :, :5] = -1
    write_geotiff(tmp_path / "over" / "a_20200101.tif", hole, one, nodata=-1)
    write_geotiff(tmp_path / "over" / "b_20190101.tif", np.full((1, 20, 20), 9.0, np.float32), one)
    wanted = {"first": 9.0, "last": 3.0, "mean": 6.0}  # in order of time, not of path
    for merge, value in wanted.items():
        ds = RasterDataset(tmp_path / "over", regex=r"._(?P<date>\d{8})", merge=merge)
        image = ds[:]["image"][0]
        assert (image[:, 5:] == value).all() and (image[:, :5] == 9.0).all() and bool(ds[:]["valid"].all())
    only = RasterDataset(tmp_path / "over", regex=r"._(?P<date>\d{8})")[:, :, "2020-01-01":"2020-01-01"]
    assert (
        (only["image"][0, :, 5:] == 3).all() and not only["valid"][:, :5].any() and (only["image"][0, :, :5] == 0).all()
    )
    assert only["meta"]["files"] == [str(tmp_path / "over" / "a_20200101.tif")]


@pytest.mark.parametrize("how", ["nodata", "nan", "alpha", "mask"])
@pytest.mark.parametrize("target", [UTM15, UTM16])
def test_a_wedge_without_data_is_invalid_and_its_value_never_seen(tmp_path, frame_near, how, target):
    frame = frame_near(UTM15)
    row, column = np.mgrid[: frame.height, : frame.width]
    wedge = column + row < 120
    values = np.where(wedge, 9999.0, 5.0).astype(np.float32)[None]
    path = tmp_path / "a.tif"
    if how == "nan":
        values[0, wedge] = np.nan
    if how == "alpha":
        values = np.concatenate([values, np.where(wedge, 0, 255)[None]]).astype(np.uint16)  # as GDAL has it
    write_geotiff(path, values, frame, nodata=9999 if how == "nodata" else None)
    with rasterio.open(path, "r+") as file:
        if how == "alpha":
            file.colorinterp = [rasterio.enums.ColorInterp.gray, rasterio.enums.ColorInterp.alpha]
        if how == "mask":
            file.write_mask(~wedge)
    for warp in ("gdal", "torch"):
        ds = RasterDataset(path, bands=["1"], crs=target, warp=warp, nodata=np.nan if how == "nan" else None)
        sample = ds[:]
        assert sample["image"].max() <= 5.0 + 1e-4 and not sample["valid"].all()
        assert torch.allclose(sample["image"][0][sample["valid"]], torch.tensor(5.0))
        if target == UTM15:
            assert np.array_equal(
                sample["valid"].numpy(), ~wedge[: sample["valid"].shape[0], -sample["valid"].shape[1] :]
            )
        polygon = ds.index.geometry[0]
        true = (~wedge).sum() * 100
        assert true * 0.99 <= polygon.area <= true * 1.05, "the footprint follows the valid pixels"


def test_time_series_show_their_gaps(tmp_path, frame_near):
    frame = frame_near(UTM15, width=20, height=20)
    beside = Grid(frame.crs, (frame.left, frame.top), 10.0, 10.0).frame_at(20, 0, 20, 20)
    for date, value, where in (("20190101", 1, frame), ("20190301", 3, frame), ("20190201", 2, beside)):
        write_geotiff(tmp_path / f"{date}.tif", np.full((1, 20, 20), value, np.float32), where)
    ds = RasterDataset(tmp_path, regex=r"(?P<date>\d{8})", stack="time")
    sample = ds[frame.left : frame.left + 200, :]
    assert sample["image"].shape == (3, 1, 20, 20) and sample["valid"].shape == (3, 20, 20)
    assert sample["image"][:, 0, 0, 0].tolist() == [1, 0, 3] and sample["valid"][:, 0, 0].tolist() == [
        True,
        False,
        True,
    ]
    assert sample["time"][:, 0].tolist() == sorted(sample["time"][:, 0].tolist())
    assert np.datetime64(int(sample["time"][1, 0]), "us") == np.datetime64("2019-02-01")
    assert ds[:, :, "2019-01-15":]["image"].shape[0] == 2


def test_bands_in_files_of_their_own(tmp_path, frame_near):
    frame = frame_near(UTM15, width=40, height=40)
    coarse = Grid(frame.crs, (frame.left, frame.top), 20.0, 20.0).frame_at(0, 0, 20, 20)
    for day in ("20190101", "20190201"):
        write_geotiff(tmp_path / "R10m" / f"T15_{day}_B02.tif", np.full((1, 40, 40), 2, np.uint16), frame)
        write_geotiff(tmp_path / "R20m" / f"T15_{day}_B05.tif", np.full((1, 20, 20), 5, np.uint16), coarse)
    regex = r"T\d\d_(?P<date>\d{8})_(?P<band>B\d\d)"
    ds = RasterDataset(tmp_path, regex=regex, bands=["B05", "B02"])
    sample = ds[:, :, "2019-02-01":]
    assert len(ds.index) == 2 and ds.res == (10.0, 10.0) and bool(sample["valid"].all())
    assert sample["image"].shape == (2, 40, 40) and sample["image"][:, 7, 7].tolist() == [5, 2]
    assert len(sample["meta"]["files"]) == 2
    with pytest.raises(ValueError, match="no band 'B08'; it has B02, B05"):
        RasterDataset(tmp_path, regex=regex, bands=["B08"])


def test_pixels_need_not_be_square_and_reading_coarser_averages(tmp_path, frame_near, write_coordinates):
    frame = frame_near(UTM15, res=(10.0, 5.0))
    write_coordinates(tmp_path / "a.tif", frame)
    ds = RasterDataset(tmp_path, dtype=torch.float64)
    assert ds.res == (10.0, 5.0)
    x, y = frame.centers()
    sample = ds[frame.left + 100 : frame.left + 300, frame.top - 200 : frame.top - 100]
    assert sample["image"].shape == (2, 20, 20) and np.array_equal(sample["image"][1, :, 0], y[20:40])
    for warp in ("gdal", "torch"):
        ds = RasterDataset(tmp_path, dtype=torch.float64, warp=warp)
        coarse = ds[frame.left : frame.left + 1600 : 80, frame.top - 800 : frame.top : 40]
        assert coarse["image"].shape == (2, 20, 20)
        inner = coarse["image"][:, 1:-1, 1:-1]
        assert np.abs(inner[0] - (frame.left + 80 * (np.arange(1, 19) + 0.5))).max() < 2
        assert np.abs(inner[1] - (frame.top - 40 * (np.arange(1, 19) + 0.5))[:, None]).max() < 1


def test_at_a_longitude_and_latitude(tmp_path, frame_near, write_coordinates):
    write_coordinates(tmp_path / "a.tif", frame_near(UTM15))
    ds = RasterDataset(tmp_path, dtype=torch.float64)
    lon, lat = transformer(ds.crs, as_crs(WGS84)).transform(ds.bounds[0] + 1003, ds.bounds[3] - 798)
    sample = ds.at(lon, lat, size=32)
    assert sample["image"].shape == (2, 32, 32)
    assert abs(float(sample["image"][0].mean()) - ds.bounds[0] - 1003) <= 5
    assert abs(float(sample["image"][1].mean()) - ds.bounds[3] + 798) <= 5


def test_both_sides_of_the_antimeridian(tmp_path, frame_near, write_coordinates):
    frame = frame_near("EPSG:32601", lon=-179.99, lat=50.5, width=100, height=100, res=(100.0, 100.0))
    frame = Frame(frame.crs, frame.left - 5000, frame.top, 100.0, 100.0, 100, 100)  # 180 degrees runs through it
    write_coordinates(tmp_path / "a.tif", frame)
    polygon = transform_polygon(shapely.box(*frame.bounds), frame.crs, as_crs(WGS84))
    assert polygon.geom_type == "MultiPolygon" and polygon.area < 0.02
    left, _, right, _ = transform_bounds(frame.bounds, frame.crs, as_crs(WGS84))
    assert 179 < left < 180 < right < 181
    ds = RasterDataset(tmp_path, crs="EPSG:3995", res=100.0, dtype=torch.float64)
    sample = ds[:]
    x, y = transformer(ds.crs, frame.crs).transform(*np.meshgrid(*ds.frame(Query()).centers()))
    error = np.hypot(sample["image"][0].numpy() - x, sample["image"][1].numpy() - y)[sample["valid"]]
    assert len(error) > 5000 and np.median(error) < 0.2 * 100
    # A raster in degrees that ends beyond 180 is found from a projection that knows no longitudes.
    degrees = Grid(as_crs(WGS84), (179.5, 51.0), 0.005, 0.005).frame_at(0, 0, 200, 200)
    write_coordinates(tmp_path / "deg" / "b.tif", degrees)
    warped = RasterDataset(tmp_path / "deg", dtype=torch.float64, warp="torch").on(
        Grid(frame.crs, (0.0, 0.0), 100.0, 100.0)
    )
    got = warped.read(frame, *warped.span)
    assert got is not None and bool(got["valid"].all())
    lon, _ = transformer(frame.crs, as_crs(WGS84)).transform(*np.meshgrid(*frame.centers()))
    assert np.abs(np.mod(got["image"][0].numpy(), 360) - np.mod(lon, 360)).max() < 0.2 * 0.005


def test_a_polar_tile_reaches_the_pole():
    crs = as_crs("EPSG:3413")
    polygon = transform_polygon(shapely.box(-1e6, -1e6, 1e6, 1e6), crs, as_crs(WGS84))
    assert polygon.bounds[3] == 90 and polygon.bounds[0] == -180 and polygon.bounds[2] == 180
    assert polygon.contains(shapely.Point(-170, 89.9)) and not polygon.contains(shapely.Point(0, 70))


def test_the_mesh_is_interpolated_to_an_eighth_of_a_pixel(frame_near):
    frame = frame_near(ALBERS, width=300, height=300)
    source = frame_near(UTM15, width=400, height=400)
    coarse = source_mesh(frame, source.crs, source.transform, source.width)
    exact = source_mesh(frame, source.crs, source.transform, source.width, tolerance=0.0)
    assert exact.shape == (300, 300, 2) and coarse.shape[0] <= 11
    nodes = torch.from_numpy(coarse).permute(2, 0, 1)[None]
    filled = torch.nn.functional.interpolate(nodes, size=(300, 300), mode="bilinear", align_corners=True)[0]
    assert np.abs(filled.permute(1, 2, 0).numpy() - exact).max() <= 0.125


@pytest.mark.parametrize("warp", ["gdal", "torch"])
def test_a_small_rotation_does_not_blur(tmp_path, frame_near, warp):
    """Noise warped between two zones keeps what bilinear weights leave of it; GDAL's own guess would take more."""
    frame = frame_near(UTM16, width=200, height=200)
    noise = np.random.default_rng(0).standard_normal((1, 200, 200)).astype(np.float32)
    write_geotiff(tmp_path / "a.tif", noise, frame)
    ds = RasterDataset(tmp_path, crs=UTM15, res=10.0, warp=warp)
    sample = ds[ds.bounds[0] + 500 : ds.bounds[0] + 1300, ds.bounds[1] + 500 : ds.bounds[1] + 1300]
    # The variance of (1-t) a + t b, for t uniform, is 2/3 of a's; in two dimensions 4/9.
    assert bool(sample["valid"].all()) and abs(float(sample["image"].var()) - 4 / 9) < 0.04


def test_torch_warp_takes_batches_and_differentiates():
    image = torch.rand(3, 2, 20, 20, dtype=torch.float64, requires_grad=True)
    at = torch.stack(torch.meshgrid(torch.linspace(2.5, 9.5, 2), torch.linspace(2.5, 9.5, 2), indexing="xy"), -1)
    valid = torch.ones(3, 20, 20, dtype=torch.bool)
    out, inside = torch_warp(image, valid, at.double().expand(3, 2, 2, 2), (8, 8))
    assert torch.allclose(out, image[..., 2:10, 2:10]) and bool(inside.all())
    out.sum().backward()
    assert torch.allclose(image.grad[..., 2:10, 2:10], torch.ones((), dtype=torch.float64))
    with pytest.raises(ValueError, match="mode"):
        torch_warp(image, valid, at.double().expand(3, 2, 2, 2), (8, 8), "lanczos")
