"""Which chips to read: at random, on a lattice, whole tiles, or batches from one tile."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import shapely
import torch
from torch.utils.data import Sampler

from flambeau.data.geo.dataset import GeoDataset, Sample, collate
from flambeau.data.geo.grid import Query
from flambeau.data.geo.index import Index
from flambeau.data.geo.times import as_interval
from flambeau.data.seeding import derive_generator

TRIES = 1000  # corners drawn for one chip before min_valid is called impossible


class Tiles:
    """The rows of a dataset, cut to a region and time of interest, as rectangles of pixels.

    size: height and width of a chip in pixels. cells: for every tile its first and past-the-last column and row.
    """

    def __init__(self, ds: GeoDataset, size: Any, roi: Any, toi: Any, units: str):
        self.size = chip_size(size, ds.res, units)
        self.grid = ds.grid
        index: Index = ds.index if roi is None else ds.index.clip(roi)
        self.index = index if toi is None else index.between(*as_interval(*toi))
        if len(self.index) == 0:
            raise ValueError(f"no tile within roi and toi: the dataset has bounds {ds.bounds}, times {ds.interval}")
        self.cells = np.array([ds.grid.cells(polygon.bounds, cover=True) for polygon in self.index.geometry])
        self.shape = np.stack([self.cells[:, 3] - self.cells[:, 1], self.cells[:, 2] - self.cells[:, 0]], 1)
        self.fits = (self.shape >= self.size).all(1)
        if not self.fits.any():
            largest = self.shape[self.shape.prod(1).argmax()]
            raise ValueError(f"size {self.size} is larger than every tile; the largest is {tuple(largest.tolist())} px")

    def query(self, tile: int, row: int, column: int, size: tuple[int, int] | None = None) -> Query:
        """The chip whose first pixel is at (row, column) of the tile."""
        height, width = self.size if size is None else size
        left, up = int(self.cells[tile, 0]) + column, int(self.cells[tile, 1]) + row
        frame = self.grid.frame_at(left, up, width, height)
        return Query(frame.bounds, self.index.start[tile], self.index.stop[tile])

    def covered(self, tile: int, bounds: Any) -> float:
        """The share of a chip that lies in the tile's footprint."""
        box = shapely.box(*bounds)
        return shapely.area(shapely.intersection(box, self.index.geometry[tile])) / shapely.area(box)


def chip_size(size: Any, res: tuple[float, float], units: str) -> tuple[int, int]:
    """Height and width of a chip in pixels.

    Raises:
        ValueError: not positive, no whole number of pixels, or another unit than ``"px"`` and ``"crs"``.
    """
    if units not in ("px", "crs"):
        raise ValueError(f"units must be 'px' or 'crs', got {units!r}")
    pair = size if isinstance(size, tuple) else (size, size)
    pixels = []
    for value, step in zip(pair, (res[1], res[0])):
        number = value if units == "px" else value / step
        if not math.isfinite(number) or abs(number - round(number)) > 1e-6 or round(number) < 1:
            unit = "pixels" if units == "px" else f"units of the CRS, of which a pixel has {step}"
            raise ValueError(f"size must be a positive whole number of pixels, got {value} {unit}")
        pixels.append(round(number))
    return pixels[0], pixels[1]


def chip_offsets(length: int, size: int, stride: int) -> list[int]:
    """First pixels of the ceil((length - size) / stride) + 1 chips along an axis; the last is moved back to its end."""
    count = max(0, math.ceil((length - size) / stride)) + 1
    return [min(number * stride, max(length - size, 0)) for number in range(count)]


def _shard(shard: tuple[int, int] | None) -> tuple[int, int]:
    if shard is not None:
        rank, world = shard
        if not 0 <= rank < world:
            raise ValueError(f"shard must be (rank, world) with 0 <= rank < world, got {shard}")
        return rank, world
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


class RandomSampler(Sampler[Query]):
    """Chips at random: a tile in proportion to its area, then a corner on the pixel grid, the last one included.

    Args:
        size: of a chip, one number or (height, width), in `units`: ``"px"``, or ``"crs"``.
        length: chips an epoch over all shards; as many as would tile the area when not given.
        roi: polygon in the dataset's CRS; tiles are cut to it. toi: (start, stop), likewise.
        generator: all that is random is drawn from it, so that each epoch differs and a seed repeats them all.
        min_valid: least share of a chip inside the tile's footprint; some of it always is.
        shard: (rank, world): which of the epoch's chips are drawn here; taken from torch.distributed where it runs.
            The generators of all ranks must have one seed. Workers of a ``DataLoader`` share one rank's chips out.

    Raises:
        ValueError: a chip larger than every tile, no tile, or while drawing a `min_valid` that no chip reaches.
    """

    def __init__(
        self,
        ds: GeoDataset,
        size: Any = 256,
        length: int | None = None,
        *,
        roi: Any = None,
        toi: Any = None,
        units: Literal["px", "crs"] = "px",
        generator: torch.Generator | None = None,
        min_valid: float = 0.0,
        shard: tuple[int, int] | None = None,
    ):
        if not 0 <= min_valid <= 1:
            raise ValueError(f"min_valid must lie in [0, 1], got {min_valid}")
        if length is not None and length < 1:
            raise ValueError(f"length must be at least 1, got {length}")
        self.tiles = Tiles(ds, size, roi, toi, units)
        self.generator, self.min_valid = generator, min_valid
        self.rank, self.world = _shard(shard)
        chips = np.ceil((self.tiles.shape - self.tiles.size) / self.tiles.size) + 1
        self.length = int(chips[self.tiles.fits].prod(1).sum()) if length is None else length
        area = np.where(self.tiles.fits, shapely.area(self.tiles.index.geometry), 0.0)
        self.area = torch.from_numpy(area / area.sum())

    def __len__(self) -> int:
        """Chips of this shard an epoch."""
        return math.ceil(self.length / self.world)

    def __iter__(self) -> Iterator[Query]:
        # Every shard draws the whole epoch and keeps its part: they differ without knowing of each other.
        yield from self.draw(len(self) * self.world, _epoch(self.generator))[self.rank :: self.world]

    def draw(self, count: int, generator: torch.Generator) -> list[Query]:
        """So many chips from a generator, independent of the epoch and the shard."""
        tiles = torch.multinomial(self.area, count, replacement=True, generator=generator).tolist()
        return [self.chip(tile, generator) for tile in tiles]

    def chip(self, tile: int, generator: torch.Generator) -> Query:
        """A chip of one tile."""
        rows, columns = (self.tiles.shape[tile] - self.tiles.size + 1).tolist()
        best = 0.0
        for _ in range(TRIES):
            row, column = (int(torch.randint(n, (), generator=generator)) for n in (rows, columns))
            query = self.tiles.query(tile, row, column)
            covered = self.tiles.covered(tile, query.bounds)
            if covered > 0 and covered >= self.min_valid - 1e-9:
                return query
            best = max(best, covered)
        raise ValueError(f"min_valid {self.min_valid} was reached by none of {TRIES} chips; the best had {best:.2f}")


def _epoch(generator: torch.Generator | None) -> torch.Generator:
    """The random stream of one epoch; without a generator it comes from torch's global one."""
    seed = int(torch.randint(1 << 62, (), generator=generator))
    return torch.Generator().manual_seed(seed)


class BatchSampler(Sampler[list[Query]]):
    """Batches of random chips, all of one tile, whose file is then opened once. For ``DataLoader(batch_sampler=...)``.

    Args: as for :class:`RandomSampler`; `length` counts batches.
    """

    def __init__(
        self, ds: GeoDataset, size: Any = 256, batch_size: int = 16, length: int | None = None, **options: Any
    ):
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.chips = RandomSampler(ds, size, **options)
        self.batch_size = batch_size
        self.length = max(1, self.chips.length // batch_size) if length is None else length

    def __len__(self) -> int:
        return math.ceil(self.length / self.chips.world)

    def __iter__(self) -> Iterator[list[Query]]:
        generator = _epoch(self.chips.generator)
        total = len(self) * self.chips.world
        tiles = torch.multinomial(self.chips.area, total, replacement=True, generator=generator).tolist()
        batches = [[self.chips.chip(tile, generator) for _ in range(self.batch_size)] for tile in tiles]
        yield from batches[self.chips.rank :: self.chips.world]


class _Listed(Sampler[Query]):
    """A fixed list of chips, dealt out to the shards."""

    def __init__(self, queries: list[Query], shard: tuple[int, int] | None):
        rank, world = _shard(shard)
        self.queries = queries[rank::world]

    def __len__(self) -> int:
        return len(self.queries)

    def __iter__(self) -> Iterator[Query]:
        yield from self.queries


class GridSampler(_Listed):
    """Every tile on a lattice of its own, so that every valid pixel is in at least one chip.

    The last chip of an axis is moved back to end with the tile; a tile smaller than a chip has one that reaches over.
    No chip comes twice, and no two shards have the same.

    Args:
        stride: pixels (or units of the CRS) between chips; `size` when not given.
        min_valid: leaves out chips with less of their area inside the footprint, at any rate those without any.
        roi, toi, units, shard: as for :class:`RandomSampler`.

    Raises:
        ValueError: a chip larger than every tile, or no tile.
    """

    def __init__(
        self,
        ds: GeoDataset,
        size: Any = 256,
        stride: Any = None,
        *,
        roi: Any = None,
        toi: Any = None,
        units: Literal["px", "crs"] = "px",
        min_valid: float = 0.0,
        shard: tuple[int, int] | None = None,
    ):
        tiles = Tiles(ds, size, roi, toi, units)
        step = tiles.size if stride is None else chip_size(stride, ds.res, units)
        queries: dict[Query, None] = {}
        for tile in range(len(tiles.index)):
            for row in chip_offsets(int(tiles.shape[tile, 0]), tiles.size[0], step[0]):
                for column in chip_offsets(int(tiles.shape[tile, 1]), tiles.size[1], step[1]):
                    query = tiles.query(tile, row, column)
                    covered = tiles.covered(tile, query.bounds)
                    if covered > 0 and covered >= min_valid:
                        queries[query] = None
        super().__init__(list(queries), shard)


class MapSampler(_Listed):
    """The whole dataset on one lattice, whatever its tiles: for predicting a map. Chips without any tile are left out.

    Args: as for :class:`GridSampler`. Chips have the time of `toi`, or all times.
    """

    def __init__(self, ds: GeoDataset, size: Any = 256, stride: Any = None, *, toi: Any = None, shard: Any = None):
        height, width = chip_size(size, ds.res, "px")
        steps = (height, width) if stride is None else chip_size(stride, ds.res, "px")
        start, stop = (None, None) if toi is None else as_interval(*toi)
        left, up, right, down = ds.grid.cells(ds.bounds, cover=True)
        queries = []
        for row in chip_offsets(down - up, height, steps[0]):
            for column in chip_offsets(right - left, width, steps[1]):
                frame = ds.grid.frame_at(left + column, up + row, width, height)
                if len(ds.index.query(frame.bounds, start, stop)):
                    queries.append(Query(frame.bounds, start, stop))
        super().__init__(queries, shard)


class PreChippedSampler(_Listed):
    """Every tile whole, for data that were cut into chips before; in random order with a generator given.

    Args: `roi`, `toi`, `shard` as for :class:`RandomSampler`; the order is drawn once.
    """

    def __init__(
        self,
        ds: GeoDataset,
        *,
        roi: Any = None,
        toi: Any = None,
        generator: torch.Generator | None = None,
        shard: tuple[int, int] | None = None,
    ):
        tiles = Tiles(ds, 1, roi, toi, "px")
        shapes = [(int(height), int(width)) for height, width in tiles.shape]
        queries = [tiles.query(tile, 0, 0, shape) for tile, shape in enumerate(shapes)]
        if generator is not None:
            queries = [queries[number] for number in torch.randperm(len(queries), generator=generator).tolist()]
        super().__init__(list(dict.fromkeys(queries)), shard)


class ChipBatches:
    """Batches of random chips as a function of the step, as :class:`flambeau.training.Trainer` takes its data.

    ``batches(step, generator)`` depends on the step and the generator's seed alone, so that a training resumes exactly.

    Args:
        transform: applied to every sample, with a generator: ``transform(sample, generator)``.
    """

    def __init__(self, ds: GeoDataset, sampler: RandomSampler, batch_size: int, transform: Any = None):
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.ds, self.sampler, self.batch_size, self.transform = ds, sampler, batch_size, transform

    def __call__(self, step: int, generator: torch.Generator) -> Sample:
        stream = derive_generator(generator.initial_seed(), "chips", step)
        samples = [self.ds[query] for query in self.sampler.draw(self.batch_size, stream)]
        if self.transform is not None:
            samples = [self.transform(sample, stream) for sample in samples]
        return {key: value for key, value in collate(samples).items() if isinstance(value, torch.Tensor)}
