"""Chips: where they fall, that they repeat, that shards and workers never share one, and that files stay few."""

import multiprocessing

import numpy as np
import pytest
import scipy.stats
import shapely
import torch
from torch.utils.data import DataLoader

from flambeau.data.geo import (
    BatchSampler,
    ChipBatches,
    GridSampler,
    MapSampler,
    PreChippedSampler,
    RandomSampler,
    RasterDataset,
    collate,
)
from flambeau.data.geo.grid import Grid
from flambeau.data.geo.world import write_geotiff


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def tiles(tmp_path, frame_near):
    """Four tiles of 100 x 90 pixels in a row, on four dates, whose values are their numbers, one half nodata."""
    frame = frame_near("EPSG:32615", width=100, height=90)
    grid = Grid(frame.crs, (frame.left, frame.top), 10.0, 10.0)
    rng = np.random.default_rng(0)
    for number in range(4):
        values = rng.integers(1, 200, (1, 90, 100)).astype(np.uint8)
        if number == 3:
            values[:, :, 50:] = 0
        write_geotiff(
            tmp_path / f"t_2019010{number + 1}.tif", values, grid.frame_at(110 * number, 0, 100, 90), nodata=0
        )
    return RasterDataset(tmp_path, regex=r"t_(?P<date>\d{8})")


def counts(ds, sampler):
    """How often each pixel of a dataset is in a chip."""
    left, up, right, down = ds.grid.cells(ds.bounds, cover=True)
    count = np.zeros((down - up, right - left), int)
    for query in sampler:
        x0, y0, x1, y1 = ds.grid.cells(query.bounds)
        count[max(y0 - up, 0) : y1 - up, max(x0 - left, 0) : x1 - left] += 1
    return count


def test_a_grid_covers_every_valid_pixel(tiles):
    valid = tiles[:]["valid"].numpy()
    for sampler in (
        GridSampler(tiles, 32),
        GridSampler(tiles, 32, 20),
        GridSampler(tiles, (90, 33), 31),
        MapSampler(tiles, 64, 48),
    ):
        assert (counts(tiles, sampler)[valid] >= 1).all()
    exact = counts(tiles, GridSampler(tiles, (45, 50)))
    assert (exact[valid] == 1).all() and len(GridSampler(tiles, (45, 50))) == 4 * 2 * 2 - 2  # two have no valid pixel
    assert len(GridSampler(tiles.take([0]), 32, 20)) == (np.ceil((90 - 32) / 20) + 1) * (np.ceil((100 - 32) / 20) + 1)
    assert len(set(GridSampler(tiles, 32))) == len(GridSampler(tiles, 32))


def test_random_corners_are_uniform_to_the_last_one(tiles):
    one = tiles.take([0])
    sampler = RandomSampler(one, (81, 91), length=4000, generator=seeded())
    rows, columns = np.zeros(10, int), np.zeros(10, int)
    for query in sampler:
        column, row, _, _ = one.grid.cells(query.bounds)
        assert one.grid.cells(query.bounds) == one.grid.cells(query.bounds, cover=True)
        rows[row] += 1
        columns[column] += 1
    for histogram in (rows, columns):
        assert histogram.sum() == 4000 and scipy.stats.chisquare(histogram).pvalue > 0.01


def test_tiles_are_chosen_by_their_area_within_the_region(tiles):
    drawn = [query.start for query in RandomSampler(tiles, 16, length=3500, generator=seeded())]
    share = [sum(start == row for start in drawn) / 3500 for row in tiles.index.start]
    assert np.allclose(share, [2 / 7, 2 / 7, 2 / 7, 1 / 7], atol=0.03)
    left, bottom, right, top = tiles.bounds
    roi = shapely.box(left, bottom, left + 300, top)
    for query in RandomSampler(tiles, 16, length=50, roi=roi, generator=seeded()):
        assert query.bounds[2] <= left + 300 + 1e-6
    toi = ("2019-01-02", "2019-01-03")
    assert {str(q.start)[:10] for q in RandomSampler(tiles, 16, 50, toi=toi, generator=seeded())} == set(toi)
    assert len(RandomSampler(tiles, 45)) == 3 * 2 * 3 + 2 * 2  # as many as tile the area; the half tile has 51 columns


def test_min_valid_is_kept(tiles):
    half = tiles.take([3])
    for query in RandomSampler(half, 40, length=200, min_valid=1.0, generator=seeded()):
        assert bool(half[query]["valid"][:, :39].all())
    frame = half.grid.frame_at(330, 0, 100, 90)
    wedge = half.within(
        shapely.Polygon([(frame.left, frame.top), (frame.left + 500, frame.top), (frame.left, frame.top - 500)])
    )
    with pytest.raises(ValueError, match="min_valid 1.0 was reached by none of 1000 chips"):
        list(RandomSampler(wedge, 45, length=1, min_valid=1.0, generator=seeded()))
    share = [
        float(wedge[query]["valid"].float().mean())
        for query in RandomSampler(wedge, 16, 40, min_valid=0.5, generator=seeded())
    ]
    assert min(share) > 0.4


def test_a_generator_repeats_everything(tiles):
    for make in (
        lambda g: RandomSampler(tiles, 32, length=40, generator=g),
        lambda g: BatchSampler(tiles, 32, 8, 5, generator=g),
        lambda g: PreChippedSampler(tiles, generator=g),
    ):
        torch.manual_seed(int(torch.randint(100, ())))  # the global stream plays no part
        one, two = make(seeded()), make(seeded())
        first = list(one)
        assert first == list(two)
        assert isinstance(one, PreChippedSampler) or list(one) != first  # another epoch
    for batch in BatchSampler(tiles, 32, 8, 5, generator=seeded()):
        assert len(batch) == 8 and len({query.start for query in batch}) == 1


def test_no_two_ranks_have_the_same_chip(tiles):
    whole = list(RandomSampler(tiles, 32, length=40, generator=seeded(), shard=(0, 1)))
    parts = [list(RandomSampler(tiles, 32, length=40, generator=seeded(), shard=(rank, 2))) for rank in range(2)]
    assert parts[0] == whole[0::2] and parts[1] == whole[1::2]
    grids = [set(GridSampler(tiles, 32, shard=(rank, 3))) for rank in range(3)]
    assert sum(map(len, grids)) == len(GridSampler(tiles, 32)) == len(set.union(*grids))
    with pytest.raises(ValueError, match="shard"):
        GridSampler(tiles, 32, shard=(2, 2))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_give_the_same_samples(tiles, method):
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"this system cannot {method} processes")
    queries = list(RandomSampler(tiles, 16, length=24, generator=seeded()))
    tiles[queries[0]]  # handles are open in the parent
    loader = {"sampler": queries, "batch_size": 4, "collate_fn": collate}
    here = list(DataLoader(tiles, **loader))
    there = list(DataLoader(tiles, **loader, num_workers=4 if method == "fork" else 2, multiprocessing_context=method))
    assert len(here) == len(there) == 6
    for one, two in zip(here, there):
        assert (
            torch.equal(one["image"], two["image"])
            and torch.equal(one["valid"], two["valid"])
            and one["meta"] == two["meta"]
        )
    again = tiles[queries[0]]  # and still usable here
    assert torch.equal(again["image"], here[0]["image"][0])


def test_open_files_are_bounded_by_the_cache(tiles, tmp_path):
    for size in (0, 1, 2):
        ds = RasterDataset(tmp_path, regex=r"t_(?P<date>\d{8})", cache=size)
        for query in RandomSampler(ds, 16, length=30, generator=seeded()):
            ds[query]
            assert len(ds.handles) <= size
    ds.handles.close()
    assert len(ds.handles) == 0
    with pytest.raises(ValueError, match="cache"):
        RasterDataset(tmp_path, cache=-1)


def test_batches_are_a_function_of_the_step(tiles):
    batches = ChipBatches(tiles, RandomSampler(tiles, 16, generator=seeded()), 4)
    one = batches(7, seeded(3))
    assert one["image"].shape == (4, 1, 16, 16) and one["valid"].dtype == torch.bool
    batches(8, seeded(3))
    assert torch.equal(batches(7, seeded(3))["image"], one["image"])
    assert not torch.equal(batches(7, seeded(4))["image"], one["image"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 101}, "larger than every tile; the largest is"),
        ({"size": 16.5}, "whole number of pixels"),
        ({"size": 165.0, "units": "crs"}, "whole number of pixels"),
        ({"size": 0}, "whole number of pixels"),
        ({"size": 16, "units": "m"}, "units must be"),
        ({"size": 16, "min_valid": 2}, "min_valid"),
        ({"size": 16, "length": 0}, "length"),
        ({"size": 16, "roi": shapely.box(0, 0, 1, 1)}, "no tile within roi"),
    ],
)
def test_bad_options_are_said_clearly(tiles, options, message):
    with pytest.raises(ValueError, match=message):
        RandomSampler(tiles, **options)


def test_sizes_in_units_of_the_crs(tiles):
    query = next(iter(RandomSampler(tiles, 320.0, length=1, units="crs", generator=seeded())))
    assert tiles[query]["image"].shape == (1, 32, 32)
