"""Maps from chips: nothing moved, nothing seamed, nothing invented."""

import numpy as np
import pytest
import torch

rasterio = pytest.importorskip("rasterio", reason="the extra flambeau[geo] is not installed")
pytest.importorskip("geopandas", reason="the extra flambeau[geo] is not installed")

from flambeau.data.geo import GridSampler, MapSampler, RasterDataset, VectorDataset  # noqa: E402
from flambeau.data.geo.grid import Grid  # noqa: E402
from flambeau.data.geo.projection import as_crs  # noqa: E402
from flambeau.data.geo.world import write_geotiff  # noqa: E402
from flambeau.deployment.predict_map import _Strip, hann_window, predict_map  # noqa: E402

GRID = Grid(as_crs("EPSG:32615"), (700_000.0, 4_500_000.0), 10.0, 10.0)


@pytest.fixture
def scene(tmp_path):
    """Two bands of random reals, 700 x 330 pixels in two tiles, one with a wedge of nodata."""
    values = np.random.default_rng(0).standard_normal((2, 700, 330)).astype(np.float32)
    row, column = np.mgrid[:700, :330]
    values[:, row + column < 150] = -99
    write_geotiff(tmp_path / "in" / "a.tif", values[:, :400], GRID.frame_at(0, 0, 330, 400), nodata=-99)
    write_geotiff(tmp_path / "in" / "b.tif", values[:, 400:], GRID.frame_at(0, 400, 330, 300), nodata=-99)
    return RasterDataset(tmp_path / "in"), values


@pytest.mark.parametrize(("size", "stride"), [(64, 40), ((100, 130), 64), (330, 200)])
def test_an_identity_model_gives_back_the_input_without_seams(tmp_path, scene, size, stride):
    ds, values = scene
    path = predict_map(
        lambda x: x, ds, MapSampler(ds, size, stride), tmp_path / "out.tif", output="scores", batch_size=3
    )
    with rasterio.open(path) as out:
        assert out.crs == "EPSG:32615" and tuple(out.bounds) == ds.bounds and out.res == (10.0, 10.0)
        assert out.transform == rasterio.Affine(10, 0, 700_000, 0, -10, 4_500_000)
        assert out.profile["tiled"] and out.block_shapes[0] == (256, 256) and out.overviews(1) == [2]
        got = out.read()
    missing = values[0] == -99
    assert np.isnan(got[:, missing]).all() and np.abs(got - values)[:, ~missing].max() <= 1e-6
    again = RasterDataset(path)[:]
    assert torch.equal(again["valid"], torch.from_numpy(~missing))
    assert not list(tmp_path.glob(".*part*"))


def test_classes_colours_and_polygons(tmp_path, scene):
    ds, values = scene
    colours = {0: (255, 0, 0, 255), 1: (0, 0, 255, 255)}
    smooth = torch.linspace(-1, 1, 64)[None, :, None].expand(1, 64, 64)
    path = predict_map(
        lambda x: torch.cat([smooth, -smooth]).expand(len(x), 2, 64, 64), ds, GridSampler(ds, 64), tmp_path / "map.tif",
        colours=colours, polygons=tmp_path / "map.gpkg",
    )  # fmt: skip
    with rasterio.open(path) as out:
        got = out.read(1)
        assert out.nodata == 255 and out.dtypes == ("uint8",) and out.colormap(1)[1] == (0, 0, 255, 255)
    assert set(np.unique(got)) == {0, 1, 255} and (got[values[0] == -99] == 255).all()
    table = VectorDataset(tmp_path / "map.gpkg", 10.0, classes=[0, 1])
    mask = table[:]["mask"].numpy()
    assert np.array_equal(mask[got != 255], got[got != 255] + 1)


def test_memory_does_not_grow_with_the_map(monkeypatch, tmp_path):
    write_geotiff(tmp_path / "tall.tif", np.ones((1, 4000, 70), np.uint8), GRID.frame_at(0, 0, 70, 4000))
    held = []
    real = _Strip.add

    def add(self, *args):
        real(self, *args)
        held.append(self.weights.shape[0])

    monkeypatch.setattr(_Strip, "add", add)
    ds = RasterDataset(tmp_path / "tall.tif")
    predict_map(lambda x: x, ds, MapSampler(ds, 64, 48), tmp_path / "out.tif", output="scores")
    assert len(held) > 150 and max(held) <= 256 + 64 + 8 * 48


def test_the_window_is_the_separable_hann():
    window = hann_window(8, 6)
    assert window.shape == (8, 6) and window.min() > 0 and torch.allclose(window, window.flip(0, 1))
    assert torch.allclose(window[0, 0], torch.tensor(np.sin(np.pi / 16) ** 2 * np.sin(np.pi / 12) ** 2).float())
    half = hann_window(8, 8)[:, 0]
    assert torch.allclose(half[:4] + half[4:], half[:4].add(half[4:]).mean().expand(4))  # half overlaps add up evenly


def test_bad_use_is_said_and_leaves_nothing(tmp_path, scene):
    ds, _ = scene
    for model, sampler, options, message in (
        (lambda x: x, [], {}, "has no chips"),
        (lambda x: x, MapSampler(ds, 64), {"output": "probabilities"}, "output must be"),
        (lambda x: x.mean((2, 3)), MapSampler(ds, 64), {}, "model must give"),
    ):
        with pytest.raises(ValueError, match=message):
            predict_map(model, ds, sampler, tmp_path / "out.tif", **options)
    assert not (tmp_path / "out.tif").exists() and not list(tmp_path.glob(".*part*"))
