"""STAC catalogues and xarray, there and back."""

import datetime
import json

import numpy as np
import pytest
import torch

from flambeau.data.geo import RasterDataset
from flambeau.data.geo.projection import as_crs, transform_polygon
from flambeau.data.geo.world import write_geotiff


@pytest.fixture
def catalogue(tmp_path, frame_near):
    """Two items of three assets: red and nir at 10 m, a two-band one at 20 m."""
    pystac = pytest.importorskip("pystac", reason="the extra flambeau[geo] is not installed")
    import shapely

    frame, coarse = (
        frame_near("EPSG:32615", width=40, height=40),
        frame_near("EPSG:32615", width=20, height=20, res=(20.0, 20.0)),
    )
    items = []
    for number, day in enumerate((5, 25)):
        polygon = transform_polygon(shapely.box(*frame.bounds), frame.crs, as_crs("EPSG:4326"))
        item = pystac.Item(
            f"s{day}", shapely.geometry.mapping(polygon), list(polygon.bounds), datetime.datetime(2019, 7, day), {}
        )
        for value, key in enumerate(("red", "nir"), 1):
            write_geotiff(tmp_path / f"{key}{day}.tif", np.full((1, 40, 40), 10 * number + value, np.uint16), frame)
            item.add_asset(key, pystac.Asset(f"./{key}{day}.tif", media_type="image/tiff"))
        write_geotiff(tmp_path / f"swir{day}.tif", np.full((2, 20, 20), 10 * number + 3, np.uint16), coarse)
        item.add_asset("swir", pystac.Asset(f"./swir{day}.tif"))
        items.append(item)
    collection = pystac.ItemCollection(items)
    collection.save_object(str(tmp_path / "items.json"))
    return tmp_path / "items.json", collection


def test_items_are_scenes(catalogue):
    from flambeau.data.geo.stac import StacDataset

    path, _ = catalogue
    ds = StacDataset(path, ["nir", "red", "swir"])
    assert ds.bands == ("nir", "red", "swir:1", "swir:2") and ds.res == (10.0, 10.0) and len(ds.index) == 2
    sample = ds[:, :, "2019-07-20":]
    inner = sample["image"][:, 2:-2, 2:-2]
    assert inner.flatten(1).unique(dim=1).tolist() == [[12.0], [11.0], [13.0], [13.0]]
    assert sample["meta"]["times"][0][0] == "2019-07-25T00:00:00.000000"
    series = StacDataset(path, ["red"], stack="time")[:]
    assert series["image"][:, 0, 5, 5].tolist() == [1, 11]
    objects = StacDataset(json.loads(path.read_text()), ["red"], root=path.parent)
    assert torch.equal(objects[:]["image"], StacDataset(path, ["red"])[:]["image"])


def test_a_catalogue_is_not_trusted(catalogue):
    from flambeau.data.geo.stac import StacDataset

    path, _ = catalogue
    content = json.loads(path.read_text())
    for href, message in (
        ("../../etc/passwd", "lies outside"),
        ("/etc/passwd", "lies outside"),
        ("file:///etc/passwd", "lies outside"),
        ("/vsicurl/http://10.0.0.1/a.tif", "is not allowed|lies outside"),
        ("ftp://host/a.tif", "is not allowed"),
        ("https://host/a.tif", "is remote; pass remote=True"),
    ):
        content["features"][0]["assets"]["red"]["href"] = href
        path.write_text(json.dumps(content))
        with pytest.raises(ValueError, match=message):
            StacDataset(path, ["red"])
    for bad, message in (
        ({"features": []}, "items must be 1 to"),
        (content, "no asset 'green'; it has red, nir, swir"),
    ):
        with pytest.raises(ValueError, match=message):
            StacDataset(bad, ["green"], root=path.parent)
    del content["features"][0]["properties"]["datetime"]
    with pytest.raises(ValueError, match="assets must name"):
        StacDataset(path, [])
    with pytest.raises(TypeError, match="regex"):
        StacDataset(path, ["nir"], regex="x")


def test_there_and_back_through_xarray(tmp_path, frame_near):
    pytest.importorskip("rioxarray", reason="the extra flambeau[geo] is not installed")
    from flambeau.data.geo.xarray_io import from_xarray

    frame = frame_near("EPSG:32615", width=30, height=20)
    values = np.random.default_rng(0).random((2, 20, 30), dtype=np.float32)
    values[:, 3:6] = -1
    write_geotiff(tmp_path / "a_20190101.tif", values, frame, nodata=-1, names=["red", "nir"])
    ds = RasterDataset(tmp_path / "a_20190101.tif")
    array = ds.to_xarray(slice(None))
    assert (
        array.rio.crs == "EPSG:32615"
        and array.rio.bounds() == frame.bounds
        and list(array.band.values) == ["red", "nir"]
    )
    assert np.isnan(array["image"].values[:, 3:6]).all() and not array["valid"].values[3:6].any()
    x, y = frame.centers()
    assert np.array_equal(array.x, x) and np.array_equal(array.y, y)
    for path in (None, tmp_path / "b.tif"):
        back = from_xarray(array["image"], path)
        assert back.bands == ("red", "nir") and back.bounds == ds.bounds
        assert torch.equal(back[:]["image"], ds[:]["image"]) and torch.equal(back[:]["valid"], ds[:]["valid"])
    stacked = RasterDataset(tmp_path / "a_20190101.tif", regex=r"a_(?P<date>\d{8})", stack="time").to_xarray(
        slice(None)
    )
    assert stacked["image"].dims == ("time", "band", "y", "x") and str(stacked.time.values[0])[:10] == "2019-01-01"
    with pytest.raises(ValueError, match="array has no CRS"):
        from_xarray(array["image"].drop_vars("spatial_ref"))
    with pytest.raises(ValueError, match=r"must be \(y, x\)"):
        from_xarray(stacked["image"].rio.write_crs("EPSG:32615"))
