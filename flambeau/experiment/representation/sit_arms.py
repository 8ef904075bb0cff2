"""The networks that SiT's experiment compares, all trained on the same images with the same labels."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from flambeau.data import Batches, ImageSet, derive_generator, derive_seed, digits
from flambeau.data.augment import Compose, Normalize, RandomResizedCrop, Views
from flambeau.data.subsets import per_class
from flambeau.experiment.representation.attention_rollout import draw_rollout, rollout_maps
from flambeau.experiment.representation.evaluation import accuracy, features, linear_probe, nearest_neighbours
from flambeau.experiment.representation.figures import reconstruction_grid
from flambeau.models.vision import ConvNet, ViT
from flambeau.nn.sin_cos import sin_cos_positions
from flambeau.objectives.masking import gmml_corrupt
from flambeau.training import Fit, Trainer, WarmupCosine, fine_tune
from flambeau.training.self_supervised.pretrain import pretrain
from flambeau.training.self_supervised.sit import SiT, SiTClassifier


@dataclass(frozen=True)
class FineTuning:
    """Training with few labels: `layer_decay` is for pre-trained networks, the rest for all of them."""

    trainer: Trainer
    layer_decay: float
    crop_scale: tuple[float, float]


@dataclass
class Arms:
    """Images, and how every network is built, pre-trained, fine-tuned and scored on them."""

    run: Any
    train: ImageSet
    test: ImageSet
    vit: Callable[..., ViT]
    crop_scale: tuple[float, float]
    batch_size: int
    training: Trainer
    fine_tuning: FineTuning
    labels_per_class: int
    probe_cases: int

    @cached_property
    def normalize(self) -> Normalize:
        """By mean and deviation of the training images."""
        deviation, mean = torch.std_mean(self.train.images, (0, 2, 3))
        return Normalize(mean.tolist(), deviation.clamp(min=1e-3).tolist())

    @property
    def classes(self) -> int:
        if self.train.classes is not None:
            return len(self.train.classes)
        return 0 if self.train.labels is None else int(self.train.labels.max()) + 1

    def network(self, class_tokens: int) -> ViT:
        """A fresh network, the same for every arm, whose positions begin as sines and cosines.

        Learned positions that begin near zero, beside patches that do not, take longer than a short training has.
        """
        torch.manual_seed(derive_seed(self.run.seed, "network"))
        _, channels, height, width = self.train.images.shape
        vit = self.vit(image_size=(height, width), in_channels=channels, class_tokens=class_tokens)
        with torch.no_grad():
            vit.pos_embed[:, class_tokens:] = 0.5 * sin_cos_positions(vit.grid, vit.width, base=100.0)
        return vit.to(self.run.device)

    def pretrain(self, name: str, method: nn.Module, views: int) -> Fit:
        """Train a self-supervised method on all training images, without their labels."""
        size = (self.train.images.shape[2], self.train.images.shape[3])
        view = Compose(RandomResizedCrop(size, self.crop_scale), self.normalize)
        return pretrain(
            method.to(self.run.device),
            self.train.images,
            views=Views(*[view] * views),
            trainer=self.training,
            batch_size=min(self.batch_size, len(self.train)),
            folder=self.run.folder / "train" / name,
            progress=self.run.progress,
            seed=self.run.seed,
        )

    def total(self) -> int:
        """Steps of a pre-training."""
        return self.training.total(Batches(self.train.images, min(self.batch_size, len(self.train))))

    def frozen(self, vit: ViT) -> dict[str, float]:
        """Test accuracy in % of a linear probe and of 20 nearest neighbours on mean patch tokens."""

        def tokens(images: Tensor) -> Tensor:
            return vit.tokens(images)[:, vit.class_tokens :].mean(1)

        vit.eval()
        known = self.train[torch.arange(min(self.probe_cases, len(self.train)))]
        assert known.labels is not None and self.test.labels is not None
        seen, unseen = (
            features(tokens, self.normalize(images).to(self.run.device)) for images in (known.images, self.test.images)
        )
        found = {
            "linear probe": linear_probe(seen, known.labels, unseen, self.run.seed),
            "20 nearest": nearest_neighbours(seen, known.labels, unseen),
        }
        return {name: 100 * accuracy(scores, self.test.labels) for name, scores in found.items()}

    def fine_tuned(self, name: str, network: nn.Module, draw: int = 0, *, pretrained: bool) -> float:
        """Test accuracy in % after training on a draw of the few labels; ``network`` itself is not changed."""
        assert self.train.labels is not None and self.test.labels is not None
        few = self.train[per_class(self.train.labels, self.labels_per_class, derive_seed(self.run.seed, "draw", draw))]
        torch.manual_seed(derive_seed(self.run.seed, "head"))
        network = copy.deepcopy(network)
        if isinstance(network, ViT):
            network = SiTClassifier(network, self.classes)
        size = (self.train.images.shape[2], self.train.images.shape[3])
        fine_tune(
            network.to(self.run.device),
            few,
            trainer=self.fine_tuning.trainer,
            batch_size=min(max(len(few) // 4, 1), 64),
            transform=Compose(RandomResizedCrop(size, self.fine_tuning.crop_scale), self.normalize),
            layer_decay=self.fine_tuning.layer_decay if pretrained else None,
            folder=self.run.folder / "train" / name,
            progress=self.run.progress,
            seed=self.run.seed,
        )
        logits = features(network, self.normalize(self.test.images))
        return 100 * float((logits.argmax(1) == self.test.labels).float().mean())


def comparison(arms: Arms, networks: Mapping[str, ViT]) -> dict[str, dict[str, Any]]:
    """Test accuracy in % of each network and of a CNN that is trained on the same few labels only.

    "scratch" among the names is the network that is not pre-trained.
    """
    torch.manual_seed(derive_seed(arms.run.seed, "cnn"))
    cnn = ConvNet((16, 32, 64), (1, 2, 2), pool=3, in_channels=arms.train.images.shape[1], classes=arms.classes)
    rows: dict[str, dict[str, Any]] = {
        name: {
            "network": name,
            "fine-tuned": arms.fine_tuned(f"{name}_tuned", network, pretrained=name != "scratch"),
            **arms.frozen(network),
        }
        for name, network in networks.items()
    }
    tuned = arms.fine_tuned("CNN_tuned", cnn, pretrained=False)
    return rows | {"CNN": {"network": "CNN", "fine-tuned": tuned, "linear probe": "", "20 nearest": ""}}


def repaired(
    arms: Arms, network: SiT, corrupt: Callable[..., Any], count: int = 12
) -> tuple[Figure, list[dict[str, Any]]]:
    """Figure of test images, corrupted and repaired, and rows of the error beside those of simple repairs."""
    clean = arms.normalize(arms.test.images[:200])
    corrupted, mask = corrupt(clean, generator=derive_generator(arms.run.seed, "repaired"))
    network.eval()
    with torch.no_grad():
        drawn = network.reconstruct(corrupted.to(arms.run.device)).cpu()
    hidden = mask.expand_as(clean)
    visible = torch.where(hidden, 0, clean).sum((2, 3), keepdim=True) / (~hidden).sum((2, 3), keepdim=True)
    rows = [
        {"filled with": name, "L1 on corrupted pixels": float((filled - clean)[hidden].abs().mean())}
        for name, filled in (
            ("what the network draws", drawn),
            ("the mean of the image's other pixels", visible.expand_as(clean)),
            ("the corrupted pixels themselves", corrupted),
        )
    ]
    shift, scale = (torch.tensor(values).view(1, -1, 1, 1) for values in (arms.normalize.mean, arms.normalize.std))
    shown_clean, shown_corrupted, shown_drawn = (x[:count] * scale + shift for x in (clean, corrupted, drawn))
    return reconstruction_grid(shown_clean, shown_corrupted, shown_drawn, mask[:count]), rows


def attention_figure(arms: Arms, vit: ViT, count: int = 8) -> Figure:
    """Test images, and what the class tokens look at in them."""
    images = arms.test.images[:count]
    maps = rollout_maps(vit, arms.normalize(images).to(arms.run.device)).cpu()
    return draw_rollout(images, maps)


def ablation_rows(arms: Arms, sit: Callable[..., SiT]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Corruption kinds, and tasks, each pre-trained anew: linear probe and fine-tuning."""
    kinds: Mapping[str, dict[str, Any]] = {
        "zeros": {"kinds": ("zeros",), "alien": 0.0},
        "noise": {"kinds": ("noise",), "alien": 0.0},
        "alien": {"kinds": ("alien",), "alien": 0.5},
        "all": {"kinds": ("zeros", "noise", "shuffle"), "alien": 0.5},
    }
    tasks: Mapping[str, tuple[int, tuple[str, ...]]] = {
        "rec only": (2, ("rec",)), "con only": (2, ("con",)), "both": (2, ("rec", "con")),
        "version 1, three tasks": (1, ("rec", "con", "rot")),
    }  # fmt: skip

    def row(column: str, name: str, method: SiT) -> dict[str, Any]:
        arms.pretrain(name, method, 1 if method.tasks == ("rec",) else 2)
        backbone = method.backbone
        tuned = arms.fine_tuned(f"{name}_tuned", backbone, pretrained=True)
        return {column: name, **arms.frozen(backbone), "fine-tuned": tuned}

    by_kind = [
        row("corruption", name, sit(2, ("rec",), partial(gmml_corrupt, drop=0.5, **options)))
        for name, options in kinds.items()
    ]
    by_task = [row("tasks", name, sit(version, named)) for name, (version, named) in tasks.items()]
    return by_kind, by_task


def digit_gains(
    run: Any, training: Trainer, fine_tuning: FineTuning, draws: int, corrupt: Callable[..., Any], hidden: int
) -> list[float]:
    """Gain in points of fine-tuning over scratch on 8x8 digits with 10 labels a class, for each draw of them."""
    train, test = digits().split((0.75, 0.25), run.seed)
    vit = partial(ViT, patch=2, width=64, depth=3, heads=4)
    arms = Arms(run, train, test, vit, (0.6, 1.0), 32, training, fine_tuning, 10, len(train))
    method = SiT(arms.network(1), tasks=("rec",), corrupt=corrupt, hidden=hidden)
    arms.pretrain("digits", method, 1)
    gains = []
    for draw in range(draws):
        scores = [
            arms.fine_tuned(f"digits_{name}_{draw}", network, draw, pretrained=name == "tuned")
            for name, network in (("tuned", method.backbone), ("scratch", arms.network(1)))
        ]
        gains.append(scores[0] - scores[1])
    return gains


def gpu_loss_ratio(run: Any) -> tuple[float, float]:
    """Loss of the first and of the last steps of ViT-S/16 with 256 images in bf16."""
    torch.manual_seed(run.seed)
    network = SiT(ViT()).to(run.device)
    generator = torch.Generator().manual_seed(run.seed)
    tiles = torch.rand(256, 3, 14, 14, generator=generator).repeat_interleave(16, 2).repeat_interleave(16, 3)
    trainer = Trainer(
        steps=40, optimizer=partial(torch.optim.AdamW, lr=5e-4), schedule=WarmupCosine(0.1), clip=3.0, precision="bf16"
    )
    view = Compose(RandomResizedCrop(224), Normalize(0.5, 0.5))
    fit = pretrain(network, tiles, views=Views(view, view), trainer=trainer, batch_size=256, seed=run.seed)
    losses = [entry["loss"] for entry in fit.history]
    return sum(losses[:5]) / 5, sum(losses[-5:]) / 5
