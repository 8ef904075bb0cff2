"""A miniature of each published layout, written and read."""

import re

import numpy as np
import pytest
import rasterio
import torch

from flambeau.data.geo import RasterDataset
from flambeau.data.geo.layouts import ClassFolders, PairedFiles, layouts, open_layout, statistics
from flambeau.data.geo.sensors import sensor
from flambeau.data.geo.world import write_geotiff

SCENES = {
    "sentinel2": ["T15TYF_20190715T165901_B04_10m.tif", "T15TYF_20190715T165901_B08_10m.tif"],
    "sentinel1": [
        "S1A_IW_20190715T000102_DVR_RTC30_G_gpuned_A1B2_VV.tif",
        "S1A_IW_20190715T000102_DVR_RTC30_G_gpuned_A1B2_VH.tif",
    ],
    "landsat8": [
        "LC08_L2SP_023032_20190715_20200827_02_T1_SR_B4.TIF",
        "LC08_L2SP_023032_20190715_20200827_02_T1_SR_B5.TIF",
    ],
    "landsat7": ["LE07_L1TP_023032_20190715_20200827_02_T1_B3.TIF", "LE07_L1TP_023032_20190715_20200827_02_T1_B4.TIF"],
    "landsat5": ["LT05_L1TP_023032_20100715_20200827_02_T1_B3.TIF", "LT05_L1TP_023032_20100715_20200827_02_T1_B4.TIF"],
    "naip": ["m_4109001_ne_15_060_20190715_20191101.tif"],
    "cdl": ["2019_30m_cdls.tif"],
    "nlcd": ["Annual_NLCD_LndCov_2019_CU_C1V0.tif"],
}


@pytest.mark.parametrize("name", SCENES)
def test_scenes(tmp_path, frame_near, name):
    layout, frame = layouts()[name], frame_near("EPSG:32615", width=20, height=20, res=(30.0, 30.0))
    count = 4 if name == "naip" else 1
    for value, file in enumerate(SCENES[name], 1):
        write_geotiff(tmp_path / "deep" / file, np.full((count, 20, 20), value, np.uint16), frame)
    (tmp_path / "readme.tif").write_text("matches no name, is never opened")
    ds = open_layout(name, tmp_path)
    assert isinstance(ds, RasterDataset) and len(ds.index) == 1
    sample = ds[:]
    if layout.get("labels"):
        assert (
            sample["mask"].eq(1).all()
            and str(ds.interval[0])[:10] == "2019-01-01"
            and str(ds.interval[1])[:10] == "2019-12-31"
        )
    else:
        assert len(ds.bands) == (4 if name == "naip" else 2) and set(ds.bands) <= {
            b.name for b in sensor(layout["sensor"])
        }
        assert str(ds.interval[0])[5:10] == "07-15" and sample["image"].shape == (len(ds.bands), 20, 20)
    assert bool(sample["valid"].all())


def picture(path, values, driver=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    kinds = {".tif": "GTiff", ".png": "PNG", ".jpg": "JPEG"}
    profile = {"driver": kinds[path.suffix], "count": len(values), "height": values.shape[1], "width": values.shape[2]}
    with rasterio.open(path, "w", dtype=values.dtype, **profile) as file:
        file.write(values)


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
@pytest.mark.parametrize("name", ["eurosat", "resisc45", "firerisk"])
def test_folders_of_classes(tmp_path, name):
    layout = layouts()[name]
    dtype = np.uint16 if name == "eurosat" else np.uint8
    for label, group in enumerate(layout["classes"]):
        values = np.full((len(layout["bands"]), 16, 16), 3 * label, dtype)
        picture(tmp_path / layout["root"].format(split="val") / group / f"{group}_1{layout['suffix']}", values)
    ds = open_layout(name, tmp_path, split="val" if name == "firerisk" else None)
    assert isinstance(ds, ClassFolders) and len(ds) == len(layout["classes"]) == len(set(layout["classes"]))
    for label in (0, len(ds) - 1):
        assert ds[label]["label"] == label and ds[label]["image"].shape == (len(layout["bands"]), 16, 16)
        assert (ds[label]["image"] - 3 * label).abs().max() <= 2
    if name == "eurosat":
        mean, std = statistics(name)
        assert mean.shape == std.shape == (13,) and set(layout["bands"]) == {band.name for band in sensor("sentinel2")}


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
@pytest.mark.parametrize(
    ("name", "image", "mask"),
    [
        ("landcoverai", "output/M-33-20-D-c-4-2_0.jpg", "output/M-33-20-D-c-4-2_0_m.png"),
        ("chesapeake", "de_1m_tiles/m_3807537_ne_18_1_naip-new.tif", "de_1m_tiles/m_3807537_ne_18_1_lc.tif"),
        ("potsdam", "4_Ortho_RGBIR/top_potsdam_2_10_RGBIR.tif", "5_Labels_all/top_potsdam_2_10_label.tif"),
    ],
)
def test_pictures_with_labels(tmp_path, name, image, mask):
    layout = layouts()[name]
    picture(tmp_path / image, np.full((len(layout["bands"]), 8, 10), 7, np.uint8))
    labels = np.arange(80).reshape(8, 10) % (len(layout["classes"]) + 1)  # the last is no class
    drawn = labels[None].astype(np.uint8)
    if "colours" in layout:
        drawn = np.array([*layout["colours"], [1, 2, 3]], np.uint8)[labels].transpose(2, 0, 1)
    picture(tmp_path / mask, drawn)
    ds = open_layout(name, tmp_path)
    assert isinstance(ds, PairedFiles) and len(ds) == 1
    sample = ds[0]
    known = torch.from_numpy(labels < len(layout["classes"]))
    assert sample["image"].shape == (len(layout["bands"]), 8, 10) and torch.equal(sample["valid"], known)
    assert torch.equal(sample["mask"][known], torch.from_numpy(labels)[known]) and (sample["mask"][~known] == 0).all()


def test_every_layout_has_a_miniature():
    tested = {*SCENES, "eurosat", "resisc45", "firerisk", "landcoverai", "chesapeake", "potsdam"}
    assert tested == set(layouts())
    for layout in layouts().values():
        for key in ("regex", "image", "mask"):
            re.compile(layout.get(key, ""))
        if "sensor" in layout and "bands" in layout:
            assert set(layout["bands"]) <= {band.name for band in sensor(layout["sensor"])}


def test_bad_use_is_said(tmp_path):
    with pytest.raises(ValueError, match="no layout 'eurosta' .*eurosat"):
        open_layout("eurosta", tmp_path)
    with pytest.raises(ValueError, match="split must be one of"):
        open_layout("firerisk", tmp_path, split="test")
    with pytest.raises(FileNotFoundError, match=r"NWPU-RESISC45/\{airplane,airport"):
        open_layout("resisc45", tmp_path)
    with pytest.raises(FileNotFoundError, match="no pairs matched"):
        open_layout("potsdam", tmp_path)
    with pytest.raises(FileNotFoundError, match="no files matched"):
        open_layout("cdl", tmp_path)
    with pytest.raises(TypeError, match="no further options"):
        open_layout("resisc45", tmp_path, warp="torch")
    with pytest.raises(ValueError, match="band_statistics computes them"):
        statistics("cdl")
