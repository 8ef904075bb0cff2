"""Train a classifier on a folder of class folders and explain one picture by its prototypes:

python examples/explain_images.py flowers/ rose.jpg explanation.html
"""

import sys
from functools import partial
from pathlib import Path

import torch

from flambeau.data import Batches, image_folder, read_image
from flambeau.experiment.prototypes.explanation import explain
from flambeau.models.prototype_net import PrototypeNet
from flambeau.models.vision.autoencoder import conv_autoencoder
from flambeau.objectives.prototype import PrototypeLoss
from flambeau.training import ConsoleProgress, Trainer
from flambeau.training.prototypes import fit_prototypes

folder, picture, page = sys.argv[1:]
cases = image_folder(folder, size=32)
net = PrototypeNet(*conv_autoencoder(cases.images.shape[1:]), num_classes=len(cases.classes), num_prototypes=20)
trainer = Trainer(epochs=100, optimizer=partial(torch.optim.Adam, lr=0.002))
batches = Batches((cases.images, cases.labels), batch_size=min(64, len(cases.images)))
fit_prototypes(net, PrototypeLoss(), batches, trainer, progress=ConsoleProgress())
explanation = explain(net, read_image(Path(picture), size=32)[None], cases.images, classes=cases.classes)[0]
explanation.save(page)
print(f"{explanation.prediction}: {page}")
