"""TorchGeo: geospatial datasets joined in space and time, and models that see every band."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from flambeau.data.geo import RandomSampler, RasterDataset, World, write_world
from flambeau.data.geo.sensors import common_names
from flambeau.data.geo.world import COLOURS, WorldFiles
from flambeau.data.seeding import derive_generator
from flambeau.experiment import Claim, experiment
from flambeau.experiment.geo.alignment import label_agreement
from flambeau.experiment.geo.figures import colour_wheel, draw_maps, rate_figure
from flambeau.experiment.geo.segmentation import majority, open_labels, score, study_bands
from flambeau.experiment.geo.throughput import chip_rates, gpu_warp, index_seconds
from flambeau.models.vision.unet import UNet
from flambeau.symbolic import symbolize
from flambeau.training import OneCycle, Trainer

# fmt: off
CLAIMS = [
    Claim("alignment", "labels joined from another projection: share right, 1.5 image pixels from a class's edge",
          unit="of pixels", at_least=0.99),
    Claim("alignment_crop", "share right, against labels cut out by the chip's bounds and stretched",
          unit="of pixels", at_least=0.001),
    Claim("bands", "mIoU with all 13 bands, against the same network on red, green and blue; a block of its own",
          unit="mIoU", at_least=0.10),
    Claim("random_split", "mIoU on chips held out at random, against that on the block", unit="mIoU"),
    Claim("prewarped", "chips per second of scenes warped before, against warping by GDAL on the fly",
          paper="faster, a figure of Landsat 8 with CDL", unit="x", at_least=1.3),
    Claim("cached", "chips per second with files kept open, against opening them for every chip",
          unit="x", at_least=1.2),
    Claim("sidecar", "opening an index from its sidecar, against from the files' headers", unit="x", at_least=5.0),
    Claim("torch_warp", "chips per second warped by torch, against by GDAL; both read the same windows", unit="x"),
    Claim("batch_sampler", "chips per second of batches from one tile, against random chips; the page cache hides it",
          paper="2.7 against 5.5 patches/s, one run of the original data", unit="x"),
    Claim("own_majority", "own data: mIoU on a block of its own, against always saying the commonest class",
          unit="mIoU", at_least=0.0),
    Claim("gpu_bandwidth", "torch warp of 64 x 13 x 256 x 256 on a GPU: its bytes a second, against a copy's",
          unit="x", at_least=0.3, needs="gpu"),
    Claim("gpu_warp", "the same with its copy to the GPU, against GDAL on all cores", unit="x", at_least=20.0,
          needs="gpu"),
    Claim("resisc45", "RESISC45, ResNet-50 from ImageNet weights: accuracy", paper="95.42 %", unit="%"),
]
PRESETS = {
    "smoke": {
        "tile": 128, "rows": 3, "dates": ("2019-04-15", "2019-07-25"), "chips": 24, "size": 32, "sizes": (32,),
        "timed": 4, "training.steps": 3, "alignment_chips": 2,
    },
    "paper": {
        "images": "landsat8/", "labels": "cdl/", "size": 256, "chips": 20000, "batch_size": 32,
        "regex": r"LC0[89]_L.{3}_\d{6}_(?P<date>\d{8})_.*_SR_(?P<band>B[1-7])\.",
        "label_regex": r"(?P<date>\d{4})_30m_cdls", "label_date_format": "%Y", "model.width": 32,
        "training": symbolize(Trainer)(
            steps=50_000, optimizer=symbolize(torch.optim.AdamW).partial(lr=1e-3), schedule=symbolize(OneCycle)(),
        ),
    },
}
# fmt: on
DATED = r"T\d\d_\d_(?P<date>\d{8})"


@experiment("torchgeo", claims=CLAIMS, presets=PRESETS)
def run(
    run: Any,
    *,
    images: str | None = None,
    labels: str | None = None,
    label: str | None = "class",
    bands: tuple[str, ...] | None = None,
    regex: str | None = None,
    date_format: str = "%Y%m%d",
    label_regex: str | None = None,
    label_date_format: str = "%Y%m%d",
    tile: int = 512,
    rows: int = 5,
    dates: tuple[str, ...] = ("2019-04-15", "2019-06-20", "2019-07-25", "2019-10-05"),
    size: int = 64,
    chips: int = 640,
    batch_size: int = 8,
    model: Callable[..., torch.nn.Module] = symbolize(UNet).partial(width=8, depth=4),
    training: Trainer = symbolize(Trainer)(
        steps=400, optimizer=symbolize(torch.optim.AdamW).partial(lr=3e-3), schedule=symbolize(OneCycle)()
    ),
    alignment_chips: int = 24,
    sizes: tuple[int, ...] = (64, 128, 256),
    timed: int = 32,
) -> None:
    """Join layers of any projections, learn from every band, and predict back to a map.

    images: folder of rasters of your own; without one, a procedural world of two UTM zones is written and used.
    labels: folder or file of classes for them, raster or vector.
    label: column of the class in a vector file.
    bands: names of the bands of your images to use; all if not given.
    regex: matched with image names, with the groups date (or start and stop) and band, if each has its own file.
    date_format: of those dates.
    label_regex: likewise of the label rasters.
    label_date_format: likewise.
    tile: pixels along a scene of the world.
    rows: scenes of each UTM zone.
    dates: on which each is seen.
    size: of a chip, in pixels.
    chips: to train on at most, read once.
    batch_size: chips a step.
    model: the network, called with in_channels and classes.
    training: how each network is trained.
    alignment_chips: chips on which the alignment is measured.
    sizes: of the chips that are timed.
    timed: chips of the smallest size that are timed.
    """
    run.unmeasured("resisc45", why="needs the RESISC45 pictures and ImageNet weights")
    gpu(run)
    study = partial(study_bands, run, size=size, chips=chips, batch_size=batch_size, model=model, training=training)
    if images is not None or labels is not None:
        if images is None or labels is None:
            raise ValueError("images and labels go together: give both or neither")
        for claim in CLAIMS[:9]:
            run.unmeasured(claim.name, why="it is about the procedural world")
        seen = RasterDataset(images, bands, regex=regex, date_format=date_format, sidecar=run.folder / "images.json")
        known = open_labels(labels, label, {"regex": label_regex, "date_format": label_date_format})
        networks, split = study(seen & known, {"all bands": range(len(seen.bands))})
        ours = score(networks["all bands"], split.block, len(split.values), run.device)
        usual = score(majority(split.train, len(split.values)), split.block, len(split.values), run.device)
        run.measure("own_majority", ours=ours, baseline=usual, value=ours - usual)
        draw_maps(run, seen, networks, split, [str(value) for value in split.values], colour_wheel(len(split.values)))
        run.note(f"map_all_bands.tif: what the network says of {images}; its value n is the label {split.values}[n].")
        return
    run.unmeasured("own_majority", why="needs images=FOLDER labels=FOLDER")
    world = World(run.seed)
    with TemporaryDirectory(dir=run.folder) as name:
        scratch = Path(name)
        with run.progress("write the world", 2 * rows * len(dates)) as task:
            files = write_world(scratch, world, size=tile, rows=rows, dates=dates, progress=task)
        seen = RasterDataset(files.scenes, regex=DATED, warp="torch", sidecar=scratch / "index.json")
        known = RasterDataset(
            files.labels, kind="mask", regex=r"labels_(?P<date>\d{4})", date_format="%Y", warp="torch"
        )
        joined = seen & known
        sampler = RandomSampler(joined, min(tile, 256), min_valid=0.9)
        queries = sampler.draw(alignment_chips, derive_generator(run.seed, "alignment"))
        ours, cropped = label_agreement(world, joined, str(files.labels), queries, margin=1.5)
        run.measure("alignment", value=ours)
        run.measure("alignment_crop", ours=ours, baseline=cropped, value=ours - cropped)

        names = common_names(seen.bands, "sentinel2")
        visible = [names.index(colour) for colour in ("red", "green", "blue")]
        networks, split = study(joined, {"13 bands": range(13), "RGB": visible})
        scores = {
            name: [score(network, part, len(split.values), run.device) for part in (split.block, split.held_out)]
            for name, network in networks.items()
        }
        (ours, held_out), (rgb, _) = scores["13 bands"], scores["RGB"]
        run.measure("bands", ours=ours, baseline=rgb, value=ours - rgb)
        run.measure("random_split", ours=held_out, baseline=ours, value=held_out - ours)
        columns = ("mIoU, a block of its own", "mIoU, chips held out at random")
        run.table("bands", [{"network sees": name} | dict(zip(columns, values)) for name, values in scores.items()])
        classes, colours = [World.classes[v - 1] for v in split.values], [COLOURS[v - 1] for v in split.values]
        draw_maps(run, seen.within(split.block_area), networks, split, classes, colours, truth=world)
        timing(run, files, scratch, sizes, timed)


def timing(run: Any, files: WorldFiles, scratch: Path, sizes: tuple[int, ...], timed: int) -> None:
    """Chips a second, in turns: of every way to read and size of chip; and the seconds to open an index."""
    rates = chip_rates(files.scenes, DATED, scratch / "warped", sizes=sizes, chips=timed, repeats=5, seed=run.seed)
    run.table("chips per second", rates)
    run.figure("rates", rate_figure(rates))
    for name, ours, baseline in (
        ("prewarped", "warped before", "warped by GDAL"),
        ("cached", "native", "native, files not kept open"),
        ("torch_warp", "warped by torch", "warped by GDAL"),
        ("batch_sampler", "native, batches from one tile", "native"),
    ):
        run.measure(name, ours=rates[0][ours], baseline=rates[0][baseline], value=rates[0][ours] / rates[0][baseline])
    kept, opened = index_seconds(files.scenes, DATED, scratch / "again.json", repeats=5)
    run.measure("sidecar", ours=kept, baseline=opened, value=opened / kept)


def gpu(run: Any) -> None:
    """The warp on a GPU, where there is one."""
    if run.device.type != "cuda":
        run.unmeasured("gpu_bandwidth", why="no GPU")
        run.unmeasured("gpu_warp", why="no GPU")
        return
    moved = gpu_warp(run.device)
    run.measure("gpu_bandwidth", ours=moved["warp"], baseline=moved["copy"], value=moved["warp"] / moved["copy"])
    run.measure("gpu_warp", value=moved["speedup"])
