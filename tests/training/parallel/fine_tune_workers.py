"""Fine-tuning in processes under plans."""

from functools import partial

import torch
from torch.utils.data import TensorDataset

from flambeau.models.vision import ViT
from flambeau.training import Trainer, fine_tune

ADAMW = partial(torch.optim.AdamW, lr=0.01, weight_decay=0.1, eps=1e-3)  # rounding is not to decide a step's sign


def fine_tuned(plan, frozen=None):
    """Losses and weights of a training whose rates fall with depth, its first steps with a frozen part."""
    torch.manual_seed(1)
    vit = ViT((8, 8), 4, 16, 2, 2, in_channels=1, classes=3).double()
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(24, 1, 8, 8, generator=generator, dtype=torch.float64)
    fit = fine_tune(
        vit, TensorDataset(images, torch.arange(24) % 3), trainer=Trainer(steps=6, optimizer=ADAMW, parallel=plan),
        batch_size=8, layer_decay=0.5, frozen=frozen, frozen_steps=3 if frozen else 0,
    )  # fmt: skip
    return [entry["loss"] for entry in fit.history], torch.cat([p.detach().flatten() for p in vit.parameters()])


CASES = [("dp2", None), ("fsdp2", None), ("cp2", None), ("dp2", "blocks"), ("fsdp2", "blocks")]


def under_plans():
    return [fine_tuned(plan, frozen) for plan, frozen in CASES]
