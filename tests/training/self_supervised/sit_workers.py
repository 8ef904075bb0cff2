"""What the tests of SiT run in processes."""

from functools import partial

import torch
import torch.distributed as dist

from flambeau.data import Batches
from flambeau.models.vision import ViT
from flambeau.objectives.masking import gmml_corrupt
from flambeau.training import Trainer
from flambeau.training.self_supervised.sit import SiT


def model(version, **options):
    torch.manual_seed(1)
    vit = ViT((8, 8), 4, 16, 2, 2, in_channels=1, class_tokens=3 - version)
    # In evaluation mode below: norms over a part of the batch would differ from those over all of it.
    return SiT(vit, version, hidden=12, out=6, **options)


def batch():
    generator = torch.Generator().manual_seed(5)
    clean = [torch.rand(8, 1, 8, 8, generator=generator) for _ in range(2)]
    pairs = [gmml_corrupt(view, generator=generator) for view in clean]
    return [x for x, _ in pairs], clean, [mask for _, mask in pairs]


def alone(version):
    views, clean, masks = batch()
    return model(version, tasks=("con",)).eval()(views, clean, masks)["con"].item()


def losses_of_halves():
    rank = dist.get_rank()
    parts = [[tensor[4 * rank : 4 * rank + 4] for tensor in tensors] for tensors in batch()]
    out = {}
    for version in (1, 2):
        out[version] = model(version, tasks=("con",), group="world").eval()(*parts)["con"].item()
        out[f"{version} without"] = model(version, tasks=("con",)).eval()(*parts)["con"].item()
    return out


def two_views(images, generator):
    return [images + 0.05 * torch.rand(images.shape, generator=generator) for _ in range(2)]


def own_loss(sit, views):
    return sit(views)


def same_corruption(images):
    """A plan draws keys for its dropout, so that the global generator gives other numbers than without one."""
    return gmml_corrupt(images, generator=torch.Generator().manual_seed(7))


def train_under_plans():
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(16, 1, 2, 2, generator=generator).repeat_interleave(4, 2).repeat_interleave(4, 3)
    images, out = images.double(), {}  # rounding alone must not tell the plans apart
    for version in (1, 2):
        for plan in (None, "dp2", "cp2"):
            group = "world" if plan == "dp2" else None
            sit = model(version, tasks=("rec", "con"), corrupt=same_corruption, group=group).double()
            trainer = Trainer(steps=10, optimizer=partial(torch.optim.SGD, lr=0.02), parallel=plan)
            out[f"before {version}"] = torch.cat([p.detach().flatten() for p in sit.parameters()])
            fit = trainer.fit(sit, own_loss, Batches(images, 8, transform=two_views), seed=3)
            trained = torch.cat([p.detach().flatten() for p in sit.parameters()])
            name = f"{plan or 'alone'} {version}"
            out[name] = {"weights": trained, "losses": [entry["loss"] for entry in fit.history]}
    return out
