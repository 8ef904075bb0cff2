"""Training a prototype net in two stages: a warm-up, then prototypes placed among the encoded data and trained on."""

from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch

from flambeau.data import Batches, derive_generator
from flambeau.models.prototype_net import PrototypeNet
from flambeau.objectives.prototype import PrototypeLoss
from flambeau.training.progress import Progress
from flambeau.training.trainer import Fit, Trainer


def fit_prototypes(
    net: PrototypeNet,
    loss: PrototypeLoss,
    data: Batches,
    trainer: Trainer,
    *,
    init: Literal["kmeans", "uniform"] = "kmeans",
    warmup: float = 1 / 6,
    folder: Path | str | None = None,
    progress: Progress | None = None,
    seed: int = 0,
) -> Fit:
    """Train ``net`` on (x, labels) and cross-reference its prototypes with the training cases.

    With ``init="uniform"`` (the paper's) the prototypes are trained from where they are, U[0, 1), to the end. With
    ``"kmeans"`` the first ``warmup`` of the steps trains in the same way, then the prototypes move to k-means centres
    of the encoded data and W is set to match (:meth:`PrototypeNet.start_prototypes`), and the other steps follow with
    a fresh optimiser. The number of steps is the same.

    Args:
        data: batches of (x, labels); the whole set is encoded for the placement.
        warmup: share of the steps before the placement.
        folder: for checkpoints, as in :meth:`Trainer.fit`; those of the warm-up go to ``FOLDER_warmup``.

    Raises:
        ValueError: unknown ``init``, ``warmup`` outside (0, 1), fewer than two steps for two stages.
    """
    if init not in ("kmeans", "uniform"):
        raise ValueError(f"init: got {init!r}, expected 'kmeans' or 'uniform'")
    if not 0 < warmup < 1:
        raise ValueError(f"warmup: got {warmup}, expected a share of the steps between 0 and 1")
    total = trainer.total(data)
    stages = {"train": total}
    if init == "kmeans":
        if total < 2:
            raise ValueError(f"trainer: got {total} step, expected at least 2 for a warm-up and the rest")
        first = min(max(1, round(warmup * total)), total - 1)
        stages = {"warmup": first, "train": total - first}
    for stage, steps in stages.items():
        stage_folder = None if folder is None else Path(f"{folder}_warmup" if stage == "warmup" else folder)
        part = replace(trainer, steps=steps, epochs=None)
        fit = part.fit(net, loss, data, folder=stage_folder, progress=progress, seed=seed)
        codes, labels = _encoded(net, data)
        if stage == "warmup":
            net.start_prototypes(codes, labels, generator=derive_generator(seed, "prototypes"))
        else:
            net.cross_reference(codes)
    return fit


@torch.no_grad()
def _encoded(net: PrototypeNet, data: Batches) -> tuple[torch.Tensor, torch.Tensor]:
    pairs = [(net.encode_all(x), y.to(net.prototypes.device)) for x, y in data.all(512)]
    return torch.cat([codes for codes, _ in pairs]), torch.cat([labels for _, labels in pairs])
