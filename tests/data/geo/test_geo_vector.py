"""Polygons as classes, boxes and instances; and files that mean harm."""

import json

import numpy as np
import pytest
import shapely
import torch

gpd = pytest.importorskip("geopandas", reason="the extra flambeau[geo] is not installed")

from flambeau.data.geo import RasterDataset, VectorDataset  # noqa: E402
from flambeau.data.geo import vector as vector_module  # noqa: E402
from flambeau.data.geo.projection import as_crs, transform_polygon  # noqa: E402
from flambeau.data.geo.world import World, write_geotiff  # noqa: E402


@pytest.fixture
def parcels(tmp_path, frame_near):
    """Twelve rotated rectangles in WGS 84 within a UTM frame."""
    frame = frame_near("EPSG:32615", width=200, height=200)
    rng = np.random.default_rng(1)
    polygons = []
    for number in range(12):
        x, y = frame.left + 250 + 500 * (number % 4), frame.top - 300 - 600 * (number // 4)
        box = shapely.box(x - 150, y - 100, x + 150, y + 100)
        polygons.append(shapely.affinity.rotate(box, rng.uniform(0, 90)))
    table = gpd.GeoDataFrame({"class": [1 + n % 3 for n in range(12)]}, geometry=polygons, crs=frame.crs)
    table.to_crs("EPSG:4326").to_file(tmp_path / "parcels.geojson")
    (tmp_path / "gpkg").mkdir()
    table.to_file(tmp_path / "gpkg" / "parcels.gpkg")
    return frame, table


@pytest.mark.parametrize("name", ["parcels.geojson", "gpkg/parcels.gpkg"])
def test_areas_are_right_to_the_perimeter(tmp_path, parcels, name):
    frame, table = parcels
    ds = VectorDataset(tmp_path / name, res=10.0, crs=frame.crs)
    sample = ds[:]
    for label in (1, 2, 3):
        polygons = table.geometry[table["class"] == label]
        area = int((sample["mask"] == label).sum()) * 100
        assert abs(area - polygons.area.sum()) <= 10 * polygons.length.sum()
        assert area > 0
    assert (sample["mask"][sample["valid"]] == 0).any()


def test_boxes_contain_their_polygons_and_instances_fill_them(tmp_path, parcels):
    frame, table = parcels
    ds = VectorDataset(tmp_path / "parcels.geojson", res=10.0, crs=frame.crs, task="instances")
    sample = ds[frame.left : frame.left + 1000, frame.top - 1700 : frame.top]
    left, top = sample["meta"]["bounds"][0], sample["meta"]["bounds"][3]
    assert len(sample["boxes"]) == len(sample["labels"]) == len(sample["instances"]) == 6
    for box, label, instance in zip(sample["boxes"].double().numpy(), sample["labels"], sample["instances"]):
        x0, y0, x1, y1 = box
        extent = shapely.box(left + 10 * x0, top - 10 * y1, left + 10 * x1, top - 10 * y0).buffer(0.01)
        held = [n for n in range(12) if extent.contains(table.geometry[n])]
        assert len(held) == 1 and table["class"][held[0]] == label
        rows, columns = np.nonzero(instance.numpy())
        assert columns.min() >= x0 - 0.5 and columns.max() + 1 <= x1 + 0.5 and rows.min() >= y0 - 0.5
        assert abs(len(rows) * 100 - 60_000) <= 10 * table.geometry[held[0]].length
    cut = ds[frame.left + 250 : frame.left + 750, frame.top - 600 : frame.top]["boxes"]  # through two parcels
    assert len(cut) == 2 and cut.min() >= 0 and cut[:, 2].max() <= 50 and cut[:, 3].max() <= 60


def test_a_join_draws_labels_on_the_pixels_of_the_image(tmp_path, frame_near):
    frame, world = frame_near("EPSG:32615", width=64, height=64), World(0)
    world.write_scene(tmp_path / "image.tif", frame)
    path = world.write_parcels(tmp_path / "p.geojson", frame, count=20)
    joined = RasterDataset(tmp_path / "image.tif") & VectorDataset(path, 1.0, classes=World.classes)
    sample = joined[:]
    assert sample["image"].shape[1:] == sample["mask"].shape == sample["valid"].shape
    truth = torch.from_numpy(world.truth_on(frame).astype(np.int64))
    column, row = (
        round((sample["meta"]["bounds"][0] - frame.left) / 10),
        round((frame.top - sample["meta"]["bounds"][3]) / 10),
    )
    truth = truth[row : row + sample["mask"].shape[0], column : column + sample["mask"].shape[1]]
    drawn = sample["mask"] > 0
    assert drawn.sum() > 100 and (sample["mask"][drawn] == truth[drawn] + 1).float().mean() > 0.5


def geojson(path, features):
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


def square(label=1, at=(-90.0, 41.0), side=0.01):
    x, y = at
    ring = [[x, y], [x + side, y], [x + side, y + side], [x, y + side], [x, y]]
    geometry = {"type": "Polygon", "coordinates": [ring]}
    return {"type": "Feature", "properties": {"class": label}, "geometry": geometry}


def test_what_is_wrong_with_a_file_is_said(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"no files matched .*geojson"):
        VectorDataset(tmp_path, 1.0)
    (tmp_path / "broken.geojson").write_text('{"type": "FeatureCollection", "features": [{"type"')
    with pytest.raises(ValueError, match=r"broken.geojson: no vector file"):
        VectorDataset(tmp_path / "broken.geojson", 1.0)
    path = geojson(tmp_path / "a.geojson", [square()])
    with pytest.raises(ValueError, match="no column 'crop'; there are class"):
        VectorDataset(path, 0.001, label="crop")
    with pytest.raises(ValueError, match="task must be"):
        VectorDataset(path, 0.001, task="points")
    with pytest.raises(ValueError, match="class is 1, which is not among classes"):
        VectorDataset(path, 0.001, classes=["crop"])[:]
    for label in ("crop", 0, -3, 2.5, 1 << 40):
        with pytest.raises(ValueError, match="give classes="):
            VectorDataset(geojson(tmp_path / "b.geojson", [square(label)]), 0.001)[:]
    with pytest.raises(ValueError, match="no features with finite coordinates"):
        VectorDataset(geojson(tmp_path / "c.geojson", []), 0.001, label=None)
    monkeypatch.setattr(vector_module, "MAX_FEATURES", 3)
    many = geojson(tmp_path / "d.geojson", [square() for _ in range(5)])
    with pytest.raises(ValueError, match="over 3 features"):
        VectorDataset(many, 0.001)[:]
    monkeypatch.setattr(vector_module, "MAX_VERTICES", 4)
    with pytest.raises(ValueError, match="5 vertices"):
        VectorDataset(path, 0.001)[:]
    monkeypatch.setattr(vector_module, "MAX_BYTES", 10)
    with pytest.raises(ValueError, match="more than the 10 that are read"):
        VectorDataset(path, 0.001)


def test_hostile_features_are_harmless(tmp_path):
    bow_tie = square()
    bow_tie["geometry"]["coordinates"] = [[[-90, 41], [-89.99, 41.01], [-89.99, 41], [-90, 41.01], [-90, 41]]]
    empty = square()
    empty["geometry"] = {"type": "Polygon", "coordinates": []}
    none = square() | {"geometry": None}
    point = square() | {"geometry": {"type": "Point", "coordinates": [-90, 41]}}
    far = square(2, at=(-180.0, -80.0), side=170.0)  # far beyond what UTM can show
    path = geojson(tmp_path / "a.geojson", [far, bow_tie, empty, none, point, square(3, at=(-89.985, 41.0))])
    ds = VectorDataset(path, 20.0, crs="EPSG:32615", task="semantic").within(
        transform_polygon(shapely.box(-90.01, 40.99, -89.97, 41.02), as_crs("EPSG:4326"), as_crs("EPSG:32615"))
    )
    mask = ds[:]["mask"]
    assert {1, 2, 3} <= set(mask.unique().tolist()) and mask.shape[0] < 300


def test_a_layer_across_the_antimeridian(tmp_path):
    path = geojson(tmp_path / "a.geojson", [square(1, at=(179.98, -17.0)), square(2, at=(-179.99, -17.0))])
    ds = VectorDataset(path, 20.0, crs="EPSG:32701")
    frame = ds.grid.frame(
        transform_polygon(shapely.box(-179.999, -17.01, -179.97, -16.98), as_crs("EPSG:4326"), ds.crs).bounds
    )
    wide = ds.grid.frame((frame.bounds[0] - 4000, *frame.bounds[1:]))
    sample = ds.read(wide, *ds.span)
    assert {1, 2} <= set(sample["mask"].unique().tolist())


def test_labels_of_a_raster_and_a_vector_file_agree(tmp_path, frame_near):
    frame = frame_near("EPSG:32615", width=50, height=50)
    values = np.zeros((1, 50, 50), np.uint8)
    values[:, 10:30, 5:45] = 4
    write_geotiff(tmp_path / "a.tif", values, frame)
    box = shapely.box(frame.left + 50, frame.top - 300, frame.left + 450, frame.top - 100)
    gpd.GeoDataFrame({"class": [4]}, geometry=[box], crs=frame.crs).to_file(tmp_path / "a.gpkg")
    joined = RasterDataset(tmp_path / "a.tif", kind="mask") & VectorDataset(tmp_path / "a.gpkg", 1.0)
    sample = joined[:]
    assert sample["mask"].shape == (2, 20, 40) and torch.equal(sample["mask"][0], sample["mask"][1])
