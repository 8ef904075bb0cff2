"""The experiment on its own world, and on a user's folders."""

import re

import numpy as np
import pytest

rasterio = pytest.importorskip("rasterio", reason="the extra flambeau[geo] is not installed")
pytest.importorskip("geopandas", reason="the extra flambeau[geo] is not installed")

from flambeau.data.geo import World, write_world  # noqa: E402
from flambeau.experiment import run_experiment  # noqa: E402
from flambeau.papers.catalog import load  # noqa: E402
from flambeau.papers.torchgeo import CLAIMS, PRESETS  # noqa: E402


def test_smoke_measures_every_claim_or_says_why(tmp_path):
    result = run_experiment(load("torchgeo"), preset="smoke", out=tmp_path / "run", seed=0, threads=1)
    outcomes = {claim["name"]: claim for claim in result["claims"]}
    assert set(outcomes) == {claim.name for claim in CLAIMS}
    for claim in outcomes.values():
        assert claim["value"] is not None or claim["why"]
    assert outcomes["alignment"]["value"] > 0.99  # this one needs no training
    assert len(result["figures"]) == 2 and len(result["tables"]["bands"]) == 2
    with rasterio.open(tmp_path / "run" / "map_13_bands.tif") as file:
        assert file.crs == "EPSG:32615" and file.colormap(1)
    assert not list((tmp_path / "run").glob("tmp*")), "the world is removed"


@pytest.mark.parametrize("labels", ["labels_2019.tif", "parcels.geojson"])
def test_a_users_folders(tmp_path, labels):
    files = write_world(tmp_path / "mine", World(3), size=128, rows=3, dates=("2019-06-20",))
    if labels == "parcels.geojson":
        World(3).write_parcels(files.parcels, files.tiles[0], count=150)
        text = files.parcels.read_text()
        for number, name in enumerate(World.classes, 1):
            text = text.replace(f'"{name}"', str(number))
        files.parcels.write_text(text)
    overrides = [
        f"images={files.scenes}",
        f"labels={tmp_path / 'mine' / labels}",
        r"regex=T15_\d_(?P<date>\d{8})",
        "size=16",
        "chips=24",
        "batch_size=4",
        "training.steps=3",
        "bands=('B02', 'B03', 'B04', 'B08')",
    ]
    result = run_experiment(load("torchgeo"), overrides=overrides, out=tmp_path / "run", seed=0, threads=1)
    outcomes = {claim["name"]: claim for claim in result["claims"]}
    assert outcomes["own_majority"]["value"] is not None and outcomes["bands"]["why"]
    with rasterio.open(tmp_path / "run" / "map_all_bands.tif") as file:
        values = np.unique(file.read(1))
        assert file.crs == "EPSG:32615" and len(values) >= 1 and file.res == (10.0, 10.0)
    assert any("its value n is the label" in note for note in result["notes"])


def test_bad_use_is_said_clearly(tmp_path):
    files = write_world(tmp_path / "mine", World(3), size=64, rows=1, dates=("2019-06-20",))
    (tmp_path / "empty").mkdir()
    for number, (overrides, error, message) in enumerate(
        (
            ([f"images={files.scenes}"], ValueError, "images and labels go together"),
            ([f"images={tmp_path / 'empty'}", f"labels={files.labels}"], FileNotFoundError, "no files matched"),
            ([f"images={files.scenes}", f"labels={files.labels}", "bands=('B42',)"], ValueError, "no band 'B42'"),
            ([f"images={files.scenes}", f"labels={files.labels}", "size=64"], ValueError, "area is too small"),
        )
    ):
        with pytest.raises(error, match=message):
            run_experiment(
                load("torchgeo"), preset="smoke", overrides=overrides, out=tmp_path / f"run{number}", threads=1
            )


def test_the_paper_preset_knows_landsat_and_cdl_names():
    regex = PRESETS["paper"]["regex"]
    match = re.match(regex, "LC08_L2SP_023032_20190715_20200827_02_T1_SR_B5.TIF")
    assert match and match.groupdict() == {"date": "20190715", "band": "B5"}
    assert re.match(regex, "LC08_L2SP_023032_20190715_20200827_02_T1_QA_PIXEL.TIF") is None
    assert re.match(PRESETS["paper"]["label_regex"], "2019_30m_cdls.tif")["date"] == "2019"
    tree = load("torchgeo").tree("paper")
    assert (tree["size"], tree["training.steps"], tree["model.width"]) == (256, 50_000, 32)
