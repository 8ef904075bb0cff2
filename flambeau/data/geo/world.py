"""A procedural landscape, known at every point, and its pictures by any sensor in any projection."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import shapely
from jaxtyping import Float, Int
from rasterio.enums import ColorInterp

from flambeau.data.geo.grid import Frame, Grid
from flambeau.data.geo.projection import as_crs, rasterio_crs, transform_bounds, transformer
from flambeau.data.geo.sensors import Band, sensor
from flambeau.data.geo.times import as_time
from flambeau.data.seeding import derive_seed
from flambeau.files import write_bytes

WGS84 = "EPSG:4326"

CLASSES = ("water", "broadleaf", "conifer", "crop", "grass", "soil", "built")
COLOURS = ((39, 92, 158), (64, 140, 60), (20, 80, 50), (220, 190, 70), (160, 205, 110), (170, 120, 80), (130, 130, 135))

# Reflectance of each class at these wavelengths (micrometres), in full leaf. In the visible the classes come in pairs
# that look alike (crop and grass, the two forests, soil and built); they part in the near and shortwave infrared.
WAVELENGTHS = (0.40, 0.49, 0.56, 0.665, 0.705, 0.74, 0.83, 0.95, 1.37, 1.61, 2.20, 2.50)
SPECTRA = np.array(
    [
        (0.050, 0.050, 0.055, 0.038, 0.034, 0.030, 0.025, 0.020, 0.012, 0.010, 0.008, 0.006),
        (0.032, 0.036, 0.060, 0.040, 0.100, 0.260, 0.420, 0.410, 0.250, 0.210, 0.100, 0.080),
        (0.030, 0.034, 0.056, 0.038, 0.075, 0.150, 0.230, 0.230, 0.120, 0.100, 0.050, 0.040),
        (0.040, 0.048, 0.085, 0.060, 0.140, 0.330, 0.480, 0.470, 0.270, 0.220, 0.110, 0.090),
        (0.042, 0.050, 0.088, 0.064, 0.130, 0.240, 0.330, 0.330, 0.280, 0.290, 0.180, 0.150),
        (0.090, 0.110, 0.150, 0.190, 0.210, 0.225, 0.250, 0.270, 0.310, 0.370, 0.330, 0.300),
        (0.095, 0.115, 0.150, 0.185, 0.195, 0.200, 0.210, 0.215, 0.215, 0.220, 0.210, 0.200),
    ]
)
GREENNESS = np.array([0.0, 0.8, 0.15, 1.0, 0.55, 0.0, 0.0])  # how far a class turns to bare soil out of season
PEAK_DAY = np.array([200.0, 195.0, 200.0, 215.0, 160.0, 200.0, 200.0])


class World:
    """A landscape of seven classes on the ellipsoid: each the largest of as many sums of sinusoids.

    Args:
        seed: of the landscape and of the noise in its pictures.
        lon, lat: of its middle. The default lies between two UTM zones (15 and 16) within the area of EPSG:5070.
        scale: typical size of a patch in metres.

    Every picture is a pure function of the seed, its frame, sensor and date.
    """

    classes = CLASSES

    def __init__(self, seed: int = 0, *, lon: float = -90.0, lat: float = 41.0, scale: float = 700.0):
        self.seed, self.lon, self.lat, self.scale = seed, lon, lat, scale
        rng = np.random.default_rng(derive_seed("landscape", seed))
        waves = 6
        direction = rng.uniform(0, 2 * np.pi, (len(CLASSES) + 1, waves))
        length = scale * rng.uniform(1.5, 5.0, (len(CLASSES) + 1, waves))
        self._wave = 2 * np.pi / length * np.stack([np.cos(direction), np.sin(direction)])
        self._phase = rng.uniform(0, 2 * np.pi, (len(CLASSES) + 1, waves))
        self._ground: tuple[Frame, np.ndarray, np.ndarray] | None = None

    def _field(self, number: int, lon: np.ndarray, lat: np.ndarray) -> np.ndarray:
        """A smooth field of about unit variance; coordinates in metres around the middle."""
        x = (lon - self.lon) * 111_320.0 * np.cos(np.deg2rad(self.lat))
        y = (lat - self.lat) * 111_320.0
        (kx, ky), phase = self._wave[:, number], self._phase[number]
        total = sum(np.sin(a * x + b * y + c) for a, b, c in zip(kx, ky, phase))
        return total * np.sqrt(2 / len(phase))

    def truth(self, lon: Float[np.ndarray, "*n"], lat: Float[np.ndarray, "*n"]) -> Int[np.ndarray, "*n"]:
        """The class (from 0) at longitudes and latitudes in degrees."""
        best, label = self._field(0, lon, lat), np.zeros(np.shape(lon), np.uint8)
        for number in range(1, len(CLASSES)):
            field = self._field(number, lon, lat)
            label[field > best] = number
            best = np.maximum(best, field)
        return label

    def elevation(self, lon: Float[np.ndarray, "*n"], lat: Float[np.ndarray, "*n"]) -> Float[np.ndarray, "*n"]:
        """Metres above the sea."""
        return 250.0 + 60.0 * self._field(len(CLASSES), lon, lat)

    def truth_on(self, frame: Frame) -> Int[np.ndarray, "height width"]:
        """The class at every pixel centre of a frame."""
        return self._seen_from(frame)[0]

    def _seen_from(self, frame: Frame) -> tuple[np.ndarray, np.ndarray]:
        """Class and light of a frame; the last one is kept, as scenes of one frame differ in their dates alone."""
        if self._ground is None or self._ground[0] != frame:
            lon, lat = _lonlat(frame)
            light = 1 + 0.08 * self._field(len(CLASSES), lon, lat)
            self._ground = frame, self.truth(lon, lat), light.astype(np.float32)
        return self._ground[1], self._ground[2]

    def reflectance(
        self, frame: Frame, bands: Sequence[Band], date: Any = "2019-07-01", *, noise: float = 0.012
    ) -> Float[np.ndarray, "bands height width"]:
        """What a sensor sees on a date: the class spectra at its wavelengths, seasons, texture, light, and noise.

        Raises:
            ValueError: a band without a wavelength.
        """
        centers = [band.center for band in bands if band.center is not None]
        if len(centers) < len(bands):
            raise ValueError(f"bands {[band.name for band in bands]} must have wavelengths")
        label, light = self._seen_from(frame)
        day = (as_time(date) - as_time(date).astype("datetime64[Y]")) / np.timedelta64(1, "D")
        spectra = np.stack([np.interp(centers, WAVELENGTHS, spectrum) for spectrum in SPECTRA])
        bare = GREENNESS * (0.5 - 0.5 * np.cos(2 * np.pi * (day - PEAK_DAY) / 365.25))
        spectra = spectra + 0.6 * bare[:, None] * (spectra[CLASSES.index("soil")] - spectra)
        rng = np.random.default_rng(
            derive_seed("noise", self.seed, str(as_time(date)), repr(frame.bounds), repr(centers))
        )
        weather = np.float32(1 + 0.1 * rng.standard_normal())
        seen = spectra.astype(np.float32).T[:, label] * (light * weather)
        return seen + np.float32(noise) * rng.standard_normal(seen.shape, dtype=np.float32)

    def write_scene(
        self,
        path: str | Path,
        frame: Frame,
        *,
        sensor_name: str = "sentinel2",
        bands: Sequence[Band] | None = None,
        date: Any = "2019-07-01",
        swath: tuple[float, float, float] | None = None,
        noise: float = 0.012,
    ) -> Path:
        """A GeoTIFF of reflectance times 10,000 as uint16, 0 where nothing was seen.

        Args:
            bands: in place of a sensor's, for example a hyperspectral one's.
            swath: (angle in degrees, first, last): what was seen is the band of pixels whose distance along that
                direction, in widths of the frame from its middle, lies between the two.
        """
        chosen = sensor(sensor_name) if bands is None else bands
        values = self.reflectance(frame, chosen, date, noise=noise)
        values = np.clip(values * np.float32(10_000), 1, 65_535).astype(np.uint16)
        if swath is not None:
            angle, first, last = swath
            column, row = np.meshgrid(np.arange(frame.width) + 0.5, np.arange(frame.height) + 0.5)
            across = np.cos(np.deg2rad(angle)) * column + np.sin(np.deg2rad(angle)) * row
            middle = np.cos(np.deg2rad(angle)) * frame.width / 2 + np.sin(np.deg2rad(angle)) * frame.height / 2
            across = (across - middle) / frame.width
            values[:, (across < first) | (across > last)] = 0
        return write_geotiff(path, values, frame, nodata=0, names=[band.name for band in chosen])

    def write_labels(self, path: str | Path, frame: Frame) -> Path:
        """A GeoTIFF of classes from 1, as uint8 with a colour map; 0 is missing."""
        colours = {0: (0, 0, 0, 0)} | {number: (*colour, 255) for number, colour in enumerate(COLOURS, 1)}
        return write_geotiff(path, self.truth_on(frame)[None] + 1, frame, nodata=0, colours=colours)

    def write_elevation(self, path: str | Path, frame: Frame) -> Path:
        """A GeoTIFF of metres, float32."""
        return write_geotiff(path, self.elevation(*_lonlat(frame))[None].astype(np.float32), frame)

    def write_parcels(self, path: str | Path, frame: Frame, count: int = 60) -> Path:
        """Rotated rectangles as GeoJSON (longitude, latitude), each with the ``class`` (its name) at its middle."""
        rng = np.random.default_rng(derive_seed("parcels", self.seed))
        left, bottom, right, top = frame.bounds
        to_degrees = transformer(frame.crs, as_crs(WGS84))
        features = []
        for _ in range(count):
            x, y = rng.uniform(left, right), rng.uniform(bottom, top)
            width, height = rng.uniform(100, 400, 2)
            box = shapely.box(x - width / 2, y - height / 2, x + width / 2, y + height / 2)
            turned = shapely.affinity.rotate(box, rng.uniform(0, 90))
            ring = [to_degrees.transform(*point) for point in turned.exterior.coords]
            name = CLASSES[int(self.truth(*(np.array([v]) for v in to_degrees.transform(x, y)))[0])]
            geometry = {"type": "Polygon", "coordinates": [[[round(u, 9), round(v, 9)] for u, v in ring]]}
            features.append({"type": "Feature", "properties": {"class": name}, "geometry": geometry})
        write_bytes(Path(path), json.dumps({"type": "FeatureCollection", "features": features}).encode())
        return Path(path)


@dataclass(frozen=True)
class WorldFiles:
    """Where :func:`write_world` put things: folder of scenes, label raster, parcels; and the frame of every tile."""

    scenes: Path
    labels: Path
    parcels: Path
    tiles: tuple[Frame, ...]


def write_world(
    folder: str | Path,
    world: World,
    *,
    size: int = 512,
    rows: int = 5,
    dates: Sequence[str] = ("2019-04-15", "2019-06-20", "2019-07-25", "2019-10-05"),
    progress: Any = None,
) -> WorldFiles:
    """Sentinel-2 scenes of two columns of tiles, one in each UTM zone, at 10 m, in rotated swaths with gaps.

    The scenes are ``scenes/T15_0_20190415.tif``; labels are in EPSG:5070 at 30 m (``labels_2019.tif``), parcels in
    GeoJSON. With the defaults, 40 scenes of 512 x 512 pixels and 13 bands, 270 MB.
    """
    folder = Path(folder)
    tiles = []
    for zone, epsg in (("T15", "EPSG:32615"), ("T16", "EPSG:32616")):
        grid = Grid(as_crs(epsg), (0.0, 0.0), 10.0, 10.0)
        x, y = transformer(as_crs(WGS84), grid.crs).transform(world.lon, world.lat)
        column, row = grid.cell(x, y)
        column = column - size + 20 if zone == "T15" else column - 20  # the two overlap a little
        tiles += [
            (f"{zone}_{n}", grid.frame_at(column, row + (2 * n - rows) * size // 2, size, size)) for n in range(rows)
        ]
    total = len(tiles) * len(dates)
    rng = np.random.default_rng(derive_seed("swaths", world.seed))
    for number in range(total):
        (name, frame), date = tiles[number // len(dates)], dates[number % len(dates)]
        swath = (rng.uniform(8, 20), *((-0.42, 2.0) if number % 2 else (-2.0, 0.42))) if number % 4 else None
        world.write_scene(folder / "scenes" / f"{name}_{date.replace('-', '')}.tif", frame, date=date, swath=swath)
        if progress is not None:
            progress.advance()
    albers = as_crs("EPSG:5070")
    boxes = np.array([transform_bounds(frame.bounds, frame.crs, albers) for _, frame in tiles])
    area = (*(boxes[:, :2].min(0) - 300), *(boxes[:, 2:].max(0) + 300))
    labels = world.write_labels(folder / "labels_2019.tif", Grid(albers, (0.0, 0.0), 30.0, 30.0).frame(area))
    parcels = world.write_parcels(folder / "parcels.geojson", tiles[0][1])
    return WorldFiles(folder / "scenes", labels, parcels, tuple(frame for _, frame in tiles))


def write_geotiff(
    path: str | Path,
    values: np.ndarray,
    frame: Frame,
    *,
    nodata: float | None = None,
    names: Sequence[str] | None = None,
    colours: dict[int, tuple[int, int, int, int]] | None = None,
) -> Path:
    """Bands (bands, height, width) as a tiled GeoTIFF, whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    block = {"tiled": True, "blockxsize": 256, "blockysize": 256} if min(values.shape[1:]) >= 256 else {}
    try:
        with rasterio.open(
            temporary, "w", driver="GTiff", width=frame.width, height=frame.height, count=len(values),
            dtype=values.dtype, crs=rasterio_crs(frame.crs.to_wkt()), transform=frame.transform, nodata=nodata, **block,
        ) as target:  # fmt: skip
            target.write(values)
            for number, name in enumerate(names or [], 1):
                target.set_band_description(number, name)
            if colours is not None:
                target.colorinterp = [ColorInterp.palette]
                target.write_colormap(1, colours)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return path


def _lonlat(frame: Frame) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.meshgrid(*frame.centers())
    return transformer(frame.crs, as_crs(WGS84)).transform(x, y)
