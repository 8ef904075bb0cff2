"""Files that are missing, broken or too large, and questions that have no answer."""

import re
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin

from flambeau.data.geo import GridSampler, Query, RasterDataset
from flambeau.data.geo import header as header_module
from flambeau.data.geo import reading as reading_module
from flambeau.data.geo.world import write_geotiff


@pytest.fixture
def good(tmp_path, frame_near):
    frame = frame_near("EPSG:32615", width=300, height=280)
    values = np.random.default_rng(0).integers(1, 99, (2, 280, 300)).astype(np.uint16)
    return write_geotiff(tmp_path / "good.tif", values, frame, nodata=0)


def test_what_is_asked_for_must_be_there(tmp_path, good):
    with pytest.raises(FileNotFoundError, match=re.escape(f"no files matched '{tmp_path}/*.jp2'")):
        RasterDataset(str(tmp_path / "*.jp2"))
    with pytest.raises(FileNotFoundError, match=r"and the regex 'S2_"):
        RasterDataset(tmp_path, regex=r"S2_(?P<date>\d+)")
    with pytest.raises(ValueError, match="good.tif has no band 'B08'; it has 1, 2"):
        RasterDataset(good, bands=["B08"])
    with pytest.raises(ValueError, match="does not follow '%Y%m%d'"):
        RasterDataset(good, regex=r"(?P<date>good)")
    ds = RasterDataset(good)
    left, bottom, right, top = ds.bounds
    with pytest.raises(IndexError, match=rf"bounds \({left}.*UTM zone 15N"):
        ds[left - 5000 : left - 4000, bottom:top]
    with pytest.raises(ValueError, match="hold no pixel"):
        ds[left : left + 1, bottom : bottom + 1]
    for key in (3, "a", (slice(0, 1), 2)):
        with pytest.raises(TypeError, match="expected a Query"):
            ds[key]
    dated = RasterDataset(good).within(start="2019-01-01", stop="2019-12-31")
    with pytest.raises(IndexError, match="times 2019-01-01"):
        dated[:, :, "2020-01-01":]
    with pytest.raises(ValueError, match="larger than every tile"):
        GridSampler(ds, 301)
    with pytest.raises(ValueError, match="crs must be"):
        RasterDataset(good, crs="EPSG:1")
    with pytest.raises(ValueError, match="res must be positive"):
        RasterDataset(good, res=-10)
    with pytest.raises(ValueError, match="band_names: .* has 2 bands, got 1"):
        RasterDataset(good, band_names=["red"])


@pytest.mark.parametrize("option", ["kind", "warp", "merge", "stack", "errors", "resampling"])
def test_unknown_options(good, option):
    with pytest.raises(ValueError, match=f"{option} must be one of"):
        RasterDataset(good, **{option: "other"})


def test_labels_are_not_averaged(good):
    with pytest.raises(ValueError, match="labels cannot be averaged"):
        RasterDataset(good, kind="mask", resampling="bilinear")


def test_a_file_without_crs_or_transform(tmp_path):
    for name, options, message in (
        ("crs", {"transform": from_origin(0, 10, 1, 1)}, "has no CRS"),
        ("transform", {"crs": "EPSG:32615"}, "has no geotransform"),
    ):
        path = tmp_path / f"{name}.tif"
        with rasterio.open(path, "w", driver="GTiff", width=4, height=4, count=1, dtype="uint8", **options) as file:
            file.write(np.ones((1, 4, 4), np.uint8))
        with pytest.raises(ValueError, match=message):
            RasterDataset(path)


def test_broken_files_are_named_or_left_out(tmp_path, good):
    (tmp_path / "text.tif").write_text("not a picture")
    (tmp_path / "short.tif").write_bytes(good.read_bytes()[:100])
    with pytest.raises(OSError, match=r"short.tif"):
        RasterDataset(tmp_path)
    with pytest.warns(UserWarning, match="2 files were left out: .*short.tif.*text.tif"):
        ds = RasterDataset(tmp_path, errors="skip")
    assert len(ds.index) == 1
    with pytest.warns(UserWarning), pytest.raises(OSError, match="none of the 2 files"):
        RasterDataset([tmp_path / "text.tif", tmp_path / "short.tif"], errors="skip")


def test_a_file_truncated_after_its_header(tmp_path, good, frame_near):
    content = good.read_bytes()
    cut = tmp_path / "cut.tif"
    write_geotiff(cut, np.ones((1, 280, 300), np.float32), frame_near("EPSG:32615", width=300, height=280))
    cut.write_bytes(cut.read_bytes()[: len(cut.read_bytes()) // 2])
    assert len(content) > 1000
    with pytest.raises(OSError, match=r"cut.tif"):
        RasterDataset(cut)[:]
    with pytest.warns(UserWarning, match="cut.tif is left out"), pytest.raises(IndexError):
        RasterDataset(cut, errors="skip")[:]


def test_huge_declarations_cost_nothing(tmp_path, good, monkeypatch):
    options = {
        "driver": "GTiff",
        "count": 1,
        "dtype": "uint8",
        "crs": "EPSG:32615",
        "transform": from_origin(0, 9e6, 1, 1),
    }
    sparse = {"SPARSE_OK": True, "tiled": True, "blockxsize": 512, "blockysize": 512}
    with rasterio.open(tmp_path / "huge.tif", "w", width=200_000, height=200_000, nodata=0, **options, **sparse):
        pass
    ds = RasterDataset(tmp_path / "huge.tif")
    with pytest.raises(ValueError, match="pixels, more than 268435456"):
        ds[:]
    assert ds[1000:1256, 8.9e6 : 8.9e6 + 256]["image"].shape == (1, 256, 256)
    monkeypatch.setattr(header_module, "BLOCK_BYTES", 1000)
    with pytest.raises(ValueError, match="blocks of .* pixels, more than the 1000 bytes"):
        RasterDataset(good)
    monkeypatch.undo()
    monkeypatch.setattr(reading_module, "MAX_VALUES", 1000)
    with pytest.raises(ValueError, match="over 1000"):
        RasterDataset(good)[:]


def test_a_query_far_larger_than_the_data_is_refused_before_memory(good):
    ds = RasterDataset(good)
    with pytest.raises(ValueError, match="pixels, more than"):
        ds[ds.bounds[0] : ds.bounds[0] + 1e8, ds.bounds[1] : ds.bounds[1] + 1e8]


def test_the_sidecar_remembers_and_notices_changes(tmp_path, good, frame_near, monkeypatch):
    sidecar = tmp_path / "index.json"
    first = RasterDataset(good, sidecar=sidecar)
    opened = []
    real = header_module.read_header
    monkeypatch.setattr(header_module, "read_header", lambda *a: opened.append(a) or real(*a))
    again = RasterDataset(good, sidecar=sidecar)
    assert opened == [] and again.bounds == first.bounds and again.index.rows[0].files == first.index.rows[0].files
    RasterDataset(good, sidecar=sidecar, nodata=7)
    assert len(opened) == 1
    frame = frame_near("EPSG:32615", width=30, height=28)
    write_geotiff(good, np.ones((2, 28, 30), np.uint16), frame)
    RasterDataset(good, sidecar=sidecar)
    assert len(opened) == 2
    sidecar.write_text("{broken")
    with pytest.warns(UserWarning, match="is no index and is made anew"):
        RasterDataset(good, sidecar=sidecar)


def test_zip_files_and_memory(tmp_path, good):
    with zipfile.ZipFile(tmp_path / "tiles.zip", "w") as archive:
        archive.write(good, "deep/good.tif")
        archive.writestr("readme.txt", "no raster")
    whole = RasterDataset(good)[:]
    assert np.array_equal(RasterDataset(tmp_path / "tiles.zip")[:]["image"], whole["image"])
    with rasterio.MemoryFile(good.read_bytes()) as memory:
        assert np.array_equal(RasterDataset(memory.name)[:]["image"], whole["image"])


def test_queries_fill_in_what_is_left_out(good):
    ds = RasterDataset(good)
    left, bottom, right, top = ds.bounds
    assert ds[left + 1000 :]["image"].shape == (2, 280, 200)
    assert ds[:, : bottom + 500]["image"].shape == (2, 50, 300)
    assert ds[Query()]["image"].shape == (2, 280, 300)
    assert ds[left:right:20, bottom:top]["image"].shape == (2, 140, 150)
    with pytest.raises(TypeError, match="a step in time"):
        ds[:, :, "2019":"2020":1]


def test_a_missing_package_is_named_with_its_pip_line():
    code = (
        "import sys; sys.modules['rasterio'] = None\n"
        "try:\n    import flambeau.data.geo\n"
        "except ModuleNotFoundError as error:\n    print(error)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.strip() == "this needs rasterio: pip install 'flambeau[geo]'"
