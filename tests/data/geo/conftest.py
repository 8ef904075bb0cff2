"""Rasters whose values say where they are."""

import numpy as np
import pytest

rasterio = pytest.importorskip("rasterio", reason="the extra flambeau[geo] is not installed")
pytest.importorskip("shapely", reason="the extra flambeau[geo] is not installed")
pytest.importorskip("pyproj", reason="the extra flambeau[geo] is not installed")

from flambeau.data.geo.grid import Grid  # noqa: E402
from flambeau.data.geo.projection import as_crs, transformer  # noqa: E402
from flambeau.data.geo.world import write_geotiff  # noqa: E402


@pytest.fixture
def frame_near():
    """A frame of a CRS whose first pixel is near a longitude and latitude."""

    def make(epsg, lon=-90.0, lat=41.0, width=200, height=160, res=(10.0, 10.0)):
        crs = as_crs(epsg)
        x, y = transformer(as_crs("EPSG:4326"), crs).transform(lon, lat)
        grid = Grid(crs, (0.0, 0.0), *res)
        return grid.frame_at(*grid.cell(x, y), width, height)

    return make


@pytest.fixture
def write_coordinates():
    """Write a raster whose bands are x and y of the pixel centres, less a base that keeps float32 exact."""

    def write(path, frame, base=(0.0, 0.0), dtype=np.float64, **options):
        x, y = np.meshgrid(*frame.centers())
        values = np.stack([x - base[0], y - base[1]]).astype(dtype)
        return write_geotiff(path, values, frame, names=["x", "y"], **options)

    return write
