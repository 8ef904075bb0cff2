"""SiT trained in processes under plans, on batches whose random parts are drawn before they are divided."""

from functools import partial

import torch

from flambeau.data import Batches
from flambeau.data.augment import RandomFlip, rotate_quarter
from flambeau.models.vision import ViT
from flambeau.training import Trainer
from flambeau.training.self_supervised.sit import SiT


def views_masks_and_turns(images, generator):
    """Two corrupted views, what they should have been, masks with as many pixels for each image, and their turns."""
    corrupted, clean, masks, turns = [], [], [], []
    for _ in range(2):
        turns.append(torch.randint(4, (len(images),), generator=generator))
        clean.append(rotate_quarter(RandomFlip()(images, generator), turns[-1]))
        cells = torch.rand(len(images), 4, generator=generator).argsort(1) < 2
        masks.append(cells.view(-1, 1, 2, 2).repeat_interleave(4, 2).repeat_interleave(4, 3))
        corrupted.append(clean[-1].masked_fill(masks[-1], 0.0))
    return corrupted, clean, masks, turns


def loss(sit, batch):
    corrupted, clean, masks, turns = batch
    return sit(corrupted, clean, masks, turns if sit.version == 1 else None)


def losses(plan, version, tasks, group):
    torch.manual_seed(1)
    vit = ViT((8, 8), 4, 16, 2, 2, in_channels=1, class_tokens=3 - version)
    sit = SiT(vit, version, tasks, hidden=12, out=6, group=group).double()  # rounding grows from step to step
    images = torch.rand(32, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    trainer = Trainer(steps=8, optimizer=partial(torch.optim.SGD, lr=0.1, momentum=0.9), parallel=plan)
    fit = trainer.fit(sit, loss, Batches(images, 8, transform=views_masks_and_turns), seed=3)
    return [{name: entry[name] for name in ("loss", *tasks)} for entry in fit.history]


def under(plan):
    """Version 2's contrastive head normalises by its batch, which data parallelism divides: so without it there."""
    tasks = ("rec",) if plan == "dp2" else ("rec", "con")
    group = "world" if plan == "dp2" else None
    return {1: losses(plan, 1, ("rec", "con", "rot"), group), 2: losses(plan, 2, tasks, group)}


def both_plans():
    return {plan: under(plan) for plan in ("dp2", "cp2")}
