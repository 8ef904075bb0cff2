"""Transforms commute with reading, indices are exact, statistics and splits see valid pixels only."""

import numpy as np
import pytest
import shapely
import torch

from flambeau.data.geo import GridSampler, Query, RandomSampler, RasterDataset
from flambeau.data.geo import splits as geo_splits
from flambeau.data.geo.sensors import common_names, sensor, sensors
from flambeau.data.geo.statistics import BandStatistics, band_statistics
from flambeau.data.geo.transforms import (
    AppendIndex,
    Normalize,
    PercentileStretch,
    crop,
    flip_horizontal,
    indices,
    random_crop,
    random_d4,
    rotate90,
)
from flambeau.data.geo.world import write_geotiff


@pytest.fixture
def sample():
    generator = torch.Generator().manual_seed(0)
    boxes = torch.tensor([[2.0, 3.0, 7.0, 9.0], [10.0, 1.0, 15.5, 4.25]])
    instances = torch.zeros(2, 12, 16, dtype=torch.bool)
    instances[0, 3:9, 2:7] = True
    instances[1, 1:4, 10:15] = True
    return {
        "image": torch.randn(5, 12, 16, generator=generator),
        "mask": torch.randint(0, 4, (12, 16), generator=generator),
        "valid": torch.rand(12, 16, generator=generator) > 0.2,
        "boxes": boxes, "labels": torch.tensor([1, 2]), "instances": instances, "meta": {"files": ["a"]},
    }  # fmt: skip


def places(sample):
    """The pixel coordinates as an image, to see where pixels go."""
    rows, columns = torch.meshgrid(torch.arange(12), torch.arange(16), indexing="ij")
    return sample | {"image": torch.stack([rows, columns]).float()}


@pytest.mark.parametrize(
    "transform",
    [flip_horizontal, lambda s: rotate90(s, 1), lambda s: rotate90(s, 3), lambda s: crop(s, 2, 1, 9, 12)],
    ids=["flip", "quarter", "three quarters", "crop"],
)
def test_labels_move_with_the_image(sample, transform):
    moved, where = transform(sample), transform(places(sample))["image"].long()
    assert torch.equal(moved["image"], sample["image"][:, where[0], where[1]])
    for key in ("mask", "valid"):
        assert torch.equal(moved[key], sample[key][where[0], where[1]])
    for box, label, instance in zip(moved["boxes"], moved["labels"], moved["instances"]):
        rows, columns = instance.nonzero(as_tuple=True)
        extent = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]).float()
        assert (box - extent).abs().max() <= 0.5, label
    assert moved["meta"] == sample["meta"] and torch.equal(sample["boxes"][0], torch.tensor([2.0, 3.0, 7.0, 9.0]))


def test_the_group_closes(sample):
    assert torch.equal(flip_horizontal(flip_horizontal(sample))["boxes"], sample["boxes"])
    again = rotate90(sample, 4)
    assert torch.equal(again["image"], sample["image"]) and torch.equal(
        rotate90(sample, -1)["mask"], rotate90(sample, 3)["mask"]
    )
    seen = {
        tuple(random_d4(sample, torch.Generator().manual_seed(seed))["mask"].flatten().tolist()) for seed in range(100)
    }
    assert len(seen) == 8
    small = random_crop(sample, 6, torch.Generator().manual_seed(0))
    assert small["image"].shape == (5, 6, 6) and small["mask"].shape == (6, 6)
    for bad in (lambda: crop(sample, 0, 0, 13, 4), lambda: random_crop(sample, 13, torch.Generator())):
        with pytest.raises(ValueError, match="12 x 16"):
            bad()


def test_indices_are_exact_and_nothing_is_divided_by_nothing():
    bands = ("B04", "B08", "B03", "B02")
    image = torch.tensor([0.1, 0.5, 0.2, 0.05]).view(4, 1, 1).expand(4, 2, 2).clone()
    image[:, 0, 0] = 0
    sample = {"image": image, "valid": torch.ones(2, 2, dtype=torch.bool)}
    out = AppendIndex("ndvi", bands)(sample)
    assert out["image"].shape == (5, 2, 2) and torch.equal(out["image"][:4], image)
    assert torch.allclose(out["image"][4, 1], torch.tensor((0.5 - 0.1) / 0.6))
    assert out["image"][4, 0, 0] == 0 and not out["valid"][0, 0] and out["valid"].sum() == 3 and sample["valid"].all()
    three = AppendIndex("gbndvi", bands)(sample)["image"][4, 1, 1]
    assert torch.allclose(three, torch.tensor((0.5 - 0.25) / 0.75))
    batch = {"image": image.expand(3, 4, 2, 2), "valid": sample["valid"].expand(3, 2, 2)}
    assert AppendIndex("ndwi", ["red", "nir", "green", "blue"])(batch)["image"].shape == (3, 5, 2, 2)
    every = [band.common for band in sensor("sentinel2")]
    for name in indices():
        AppendIndex(name, ["VV", "VH"] if name == "swi" else every)


def test_unknown_bands_indices_and_sensors_name_the_nearest():
    with pytest.raises(ValueError, match="no index 'ndvl' .*ndvi"):
        AppendIndex("ndvl", ["red", "nir"])
    with pytest.raises(ValueError, match="ndbi needs the bands swir1"):
        AppendIndex("ndbi", ["B04", "B08"], "sentinel2")
    with pytest.raises(ValueError, match="mean different things for .*landsat8.*; say which"):
        AppendIndex("ndvi", ["B3", "B4"])
    assert common_names(["B4", "B5"], "landsat8") == ["red", "nir"]
    assert common_names(["B4", "B5"], "landsat5") == ["nir", "swir1"]
    with pytest.raises(ValueError, match="no sensor 'sentinel-2' .*sentinel2"):
        sensor("sentinel-2")
    with pytest.raises(ValueError, match="not all bands of one of"):
        common_names(["B04", "B99"])
    for bands in sensors().values():
        assert len({band.name for band in bands}) == len({band.common for band in bands}) == len(bands)
        assert all(band.center is None or 0.35 < band.center < 15 for band in bands)


def test_statistics_are_those_of_the_valid_pixels():
    generator = torch.Generator().manual_seed(0)
    images = 1e4 + 3 * torch.randn(6, 4, 20, 30, generator=generator, dtype=torch.float64)
    valid = torch.rand(6, 20, 30, generator=generator) > 0.4
    spoilt = torch.where(valid[:, None], images, -1e9)
    streamed = band_statistics({"image": i, "valid": v} for i, v in zip(spoilt, valid))
    pixels = images.movedim(1, -1)[valid]
    assert torch.allclose(streamed.mean, pixels.mean(0), rtol=1e-12)
    assert torch.allclose(streamed.std, pixels.std(0, correction=0), rtol=1e-9)
    assert torch.equal(streamed.min, pixels.amin(0)) and torch.equal(streamed.max, pixels.amax(0))
    halves = BandStatistics(4).update(spoilt[:3], valid[:3]).merge(BandStatistics(4).update(spoilt[3:], valid[3:]))
    assert torch.allclose(halves.std, streamed.std, rtol=1e-12) and halves.count == streamed.count
    assert BandStatistics(4).update(spoilt, torch.zeros_like(valid)).count == 0
    with pytest.raises(ValueError, match="image must be"):
        BandStatistics(3).update(spoilt, valid)
    with pytest.raises(ValueError, match="there are none"):
        band_statistics([])


def test_stretch_and_normalise_ignore_what_is_missing():
    image = torch.arange(100.0).view(1, 10, 10).repeat(2, 1, 1)
    valid = torch.ones(10, 10, dtype=torch.bool)
    valid[0] = False
    image[:, 0] = -1e6
    out = PercentileStretch(0, 100)({"image": image, "valid": valid})["image"]
    assert out[0, 1, 0] == 0 and out[0, 9, 9] == 1 and (out[:, 0] == 0).all()
    normal = Normalize(torch.tensor([10.0, 20.0]), torch.tensor([2.0, 5.0]))({"image": image, "valid": valid})["image"]
    assert normal[1, 1, 0] == (10 - 20) / 5 and (normal[:, 0] == 0).all()
    nothing = {"image": image, "valid": torch.zeros_like(valid)}
    assert PercentileStretch()(nothing) is nothing
    for bad in (lambda: PercentileStretch(98, 2), lambda: Normalize(torch.ones(1), torch.zeros(1))):
        with pytest.raises(ValueError, match="must"):
            bad()


@pytest.fixture
def scene(tmp_path, frame_near):
    frame = frame_near("EPSG:32615", width=240, height=180)
    for day in ("20190101", "20190201", "20190301"):
        write_geotiff(tmp_path / f"s_{day}.tif", np.ones((1, 180, 240), np.uint8), frame)
    return RasterDataset(tmp_path, regex=r"s_(?P<date>\d{8})")


def test_cells_lie_apart_and_leak_nothing(scene):
    parts = geo_splits.grid_cells(scene, 60, [0.5, 0.25, 0.25], torch.Generator().manual_seed(0), buffer=8)
    shares = [part.index.region.area for part in parts]
    assert np.allclose(shares, [6 * 440**2, 3 * 440**2, 3 * 440**2])
    for number, part in enumerate(parts):
        for other in parts[:number]:
            assert shapely.distance(part.index.region, other.index.region) >= 160 - 1e-6
        valid = part[Query(scene.bounds)]["valid"]
        assert int(valid.sum()) == round(part.index.region.area / 100)
        for query in RandomSampler(part, 20, length=30, generator=torch.Generator().manual_seed(1)):
            assert part.region.buffer(1e-6).contains(shapely.box(*query.bounds))
            assert bool(part[query]["valid"].all())
    assert scene.region is None and bool(scene[:]["valid"].all())
    joined = scene & scene
    first = geo_splits.grid_cells(joined, 60, [0.5, 0.5], torch.Generator().manual_seed(0))[0]
    assert not bool(first[Query(scene.bounds)]["valid"].all()) and len(GridSampler(first, 30)) > 0


def test_other_splits(scene):
    parts = geo_splits.random_tiles(scene, [2 / 3, 1 / 3], torch.Generator().manual_seed(0))
    assert [len(part.index) for part in parts] == [2, 1]
    assert set(parts[0].index.rows) | set(parts[1].index.rows) == set(scene.index.rows)
    early, late = geo_splits.time_series(scene, ["2019-02-01"])
    assert len(early.index) == 1 and len(late.index) == 2
    with pytest.raises(IndexError):
        early[:, :, "2019-02-01":"2019-03-05"]
    left, bottom, right, top = scene.bounds
    west, east = shapely.box(left, bottom, left + 1200, top), shapely.box(left + 1200, bottom, right, top)
    one, two = geo_splits.regions(scene, [west, east], buffer=50)
    assert shapely.distance(one.index.region, two.index.region) == 100
    for bad, message in (
        (lambda: geo_splits.regions(scene, [west, west]), "must not overlap"),
        (lambda: geo_splits.time_series(scene, ["2019-02-01", "2019-01-01"]), "must ascend"),
        (lambda: geo_splits.random_tiles(scene, [0.5, 0.4], torch.Generator()), "add up to 1"),
        (lambda: geo_splits.random_tiles(scene, [0.9, 0.05, 0.05], torch.Generator()), "leave a part empty"),
        (lambda: geo_splits.grid_cells(scene, 60, [0.5, 0.5], torch.Generator(), buffer=30), "buffer"),
    ):
        with pytest.raises(ValueError, match=message):
            bad()
