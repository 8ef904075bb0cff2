"""Learn from a folder of GeoTIFFs and a label raster in any projections, and predict a map back:

python examples/segment_geotiffs.py scenes/ labels.tif map.tif
"""

import sys

from flambeau.data.geo import ChipBatches, GridSampler, MapSampler, RandomSampler, RasterDataset
from flambeau.data.geo.splits import grid_cells
from flambeau.data.geo.statistics import band_statistics
from flambeau.data.geo.transforms import Normalize
from flambeau.data.seeding import derive_generator
from flambeau.deployment.predict_map import predict_map
from flambeau.models.vision.unet import UNet
from flambeau.objectives.segmentation import confusion_matrix, masked_cross_entropy, mean_iou
from flambeau.training import ConsoleProgress, Trainer

scenes, labels, out = sys.argv[1:4]
images = RasterDataset(scenes)
train, test = grid_cells(images & RasterDataset(labels, kind="mask"), 128, [0.8, 0.2], derive_generator(0), buffer=8)
chips = RandomSampler(train, size=64, min_valid=0.5)
seen = band_statistics(train[query] for query in chips.draw(50, derive_generator(1)))
normalize = Normalize(seen.mean.float(), seen.std.float())
batches = ChipBatches(train, chips, batch_size=8, transform=lambda sample, generator: normalize(sample))
net = UNet(in_channels=len(images.bands), classes=256)
Trainer(steps=500).fit(
    net,
    lambda net, b: masked_cross_entropy(net(b["image"]), b["mask"], b["valid"]),
    batches,
    progress=ConsoleProgress(),
)
tests = (normalize(test[query]) for query in GridSampler(test, 64))
scores = (confusion_matrix(net(s["image"][None])[0].argmax(0), s["mask"], s["valid"], 256) for s in tests)
print(f"mIoU on cells of its own: {mean_iou(sum(scores)):.3f}; the map is {out}")
predict_map(net, images, MapSampler(images, 256, stride=192), out, transform=normalize)
