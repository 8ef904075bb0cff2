"""Maps: raster, vector and STAC layers indexed by space and time. Needs the extra ``flambeau[geo]``."""

from flambeau.extras import require

for _name in ("rasterio", "shapely", "pyproj"):
    require(_name, "geo")

from flambeau.data.geo.dataset import GeoDataset, IntersectionDataset, UnionDataset, collate  # noqa: E402
from flambeau.data.geo.grid import Frame, Grid, Query  # noqa: E402
from flambeau.data.geo.raster import RasterDataset  # noqa: E402
from flambeau.data.geo.samplers import (  # noqa: E402
    BatchSampler,
    ChipBatches,
    GridSampler,
    MapSampler,
    PreChippedSampler,
    RandomSampler,
)
from flambeau.data.geo.vector import VectorDataset  # noqa: E402
from flambeau.data.geo.world import World, write_world  # noqa: E402

__all__ = [
    "BatchSampler",
    "ChipBatches",
    "Frame",
    "GeoDataset",
    "Grid",
    "GridSampler",
    "IntersectionDataset",
    "MapSampler",
    "PreChippedSampler",
    "Query",
    "RandomSampler",
    "RasterDataset",
    "UnionDataset",
    "VectorDataset",
    "World",
    "collate",
    "write_world",
]
