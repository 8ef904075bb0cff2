"""Pre-training of one network by several methods on the same images, and how well SparK fills in hidden cells."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from statistics import fmean
from typing import Any, Literal

import torch
from torch import Tensor, nn

from flambeau.data import derive_generator, photos
from flambeau.data.augment import Compose, RandomFlip, RandomResizedCrop
from flambeau.data.medical.views import medical_views
from flambeau.objectives.masking import random_cells
from flambeau.training.self_supervised import SparK, pretrain, spark_visualise
from flambeau.training.self_supervised.recipe import Recipe

CROP = (2 / 3, 1.0)  # share of the image that a masked model sees (Tian et al. 2023, appendix A)
LOCAL_VIEWS = 4  # SwAV's smaller crops beside the two large ones (Wolf et al. 2023, section 3)


def pretrained(
    run: Any,
    methods: Sequence[str],
    recipes: Mapping[str, Recipe],
    encoder: Callable[..., nn.Module],
    images: Tensor,
    pool: Literal["mean", "max"],
    prefix: str = "",
) -> tuple[dict[str, Callable[[], nn.Module]], dict[str, nn.Module]]:
    """A builder of the network for each method, with its weights, and the trained methods themselves.

    ``"scratch"`` builds the network with random weights. All methods start from the same weights. prefix: of the
    folders of the trainings.

    Raises:
        ValueError: an unknown method, or none.
    """
    known = [*recipes, "scratch"]
    if not methods or set(methods) - set(known):
        raise ValueError(f"methods must be some of {', '.join(known)}, got {list(methods)}")
    build = partial(encoder, in_channels=images.shape[1])
    builders: dict[str, Callable[[], nn.Module]] = {}
    trained: dict[str, nn.Module] = {}
    for name in methods:
        if name == "scratch":
            builders[name] = build
            continue
        torch.manual_seed(run.seed)
        method = as_method(name, recipes[name], build(), images.shape[1:], pool).to(run.device)
        pretrain(
            method,
            images,
            views=masked_views(images.shape[2:]) if name == "spark" else contrastive_views(name, images.shape[2:]),
            trainer=recipes[name].training,
            batch_size=recipes[name].batch_size,
            folder=run.folder / "train" / f"{prefix}{name}",
            progress=run.progress,
            seed=run.seed,
        )
        trained[name] = method
        builders[name] = partial(_with_weights, build, method.backbone.state_dict())
    return builders, trained


def as_method(name: str, recipe: Recipe, backbone: nn.Module, shape: Sequence[int], pool: str) -> nn.Module:
    """The module that trains `backbone` on images of `shape` (channels, height, width)."""
    if name == "spark":
        return recipe.method(backbone, input_size=tuple(shape[1:]))
    return recipe.method(backbone, input_shape=tuple(shape), pool=pool)


def masked_views(size: Sequence[int]) -> Any:
    """A crop and a mirror image: what SparK is trained on."""
    return Compose(RandomFlip(), RandomResizedCrop((size[0], size[1]), CROP))


def contrastive_views(name: str, size: Sequence[int]) -> Any:
    """Two views; SwAV has smaller ones as well."""
    return medical_views((size[0], size[1]), local=LOCAL_VIEWS if name == "swav" else 0)


def _with_weights(build: Callable[[], nn.Module], weights: Mapping[str, Tensor]) -> nn.Module:
    network = build()
    network.load_state_dict(weights)
    return network


@torch.no_grad()
def hidden_error(spark: SparK, images: Tensor, seed: int = 0, batch_size: int = 128) -> float:
    """Mean squared error of the hidden cells; predicting the mean of each cell has 1.0."""
    spark.eval()
    device = next(spark.parameters()).device
    generator = derive_generator(seed, "hidden cells")
    size = images.shape[2:]
    grid, total = (size[0] // spark.stride, size[1] // spark.stride), 0.0
    for part in images.split(batch_size):
        mask = random_cells(len(part), grid, spark.keep(size), generator)
        total += spark(part.to(device), mask.to(device))["loss"].item() * len(part)
    return total / len(images)


def filled_in(spark: SparK, images: Tensor, seed: int = 0) -> Any:
    """A figure: images, what SparK saw of them, and what it made of that."""
    from matplotlib.figure import Figure

    size = images.shape[2:]
    grid = (size[0] // spark.stride, size[1] // spark.stride)
    mask = random_cells(len(images), grid, spark.keep(size), derive_generator(seed, "hidden cells"))
    device = next(spark.parameters()).device
    seen, made = spark_visualise(spark.eval(), images.to(device), mask.to(device))
    figure = Figure(figsize=(1.2 * len(images), 3.8))
    axes = figure.subplots(3, len(images), squeeze=False)
    for row, (title, pictures) in enumerate((("image", images), ("seen", seen), ("filled in", made))):
        axes[row][0].set_ylabel(title)
        for place, picture in enumerate(pictures.detach().cpu()):
            shown = picture.mean(0) if picture.shape[0] != 3 else picture.permute(1, 2, 0)
            axes[row][place].imshow(shown.clamp(0, 1), cmap="gray", vmin=0, vmax=1)
            axes[row][place].set(xticks=[], yticks=[])
    return figure


def measure_gains(run: Any, table: Sequence[Mapping[str, Any]], lost: Mapping[str, float]) -> None:
    """The claims about SparK against training from scratch and against contrastive methods, in points.

    table, lost: of ``label_efficiency.summary`` and ``label_efficiency.robustness``.
    """
    by_method: dict[str, list[Mapping[str, Any]]] = {}
    for row in table:
        by_method.setdefault(row["method"], []).append(row)
    ours, scratch = by_method.get("spark"), by_method.get("scratch")
    if ours is None or scratch is None:
        for name in ("few_labels", "fewest_labels", "robustness"):
            run.unmeasured(name, why="needs the methods spark and scratch")
    else:
        gains = [100 * (a["accuracy"] - b["accuracy"]) for a, b in zip(ours, scratch)]
        for name, place in (("few_labels", gains.index(min(gains))), ("fewest_labels", 0)):
            accuracies = {"ours": 100 * ours[place]["accuracy"], "baseline": 100 * scratch[place]["accuracy"]}
            run.measure(name, value=gains[place], **accuracies)
        ours_lost, scratch_lost = 100 * lost["spark"], 100 * lost["scratch"]
        run.measure("robustness", ours=ours_lost, baseline=scratch_lost, value=scratch_lost - ours_lost)
    means = {name: 100 * fmean(row["AUC"] for row in rows) for name, rows in by_method.items()}
    contrastive = [means[name] for name in means if name not in ("spark", "scratch")]
    if ours is None or not contrastive:
        run.unmeasured("contrastive", why="needs spark and a contrastive method")
    else:
        best = max(contrastive)
        run.measure("contrastive", ours=means["spark"], baseline=best, value=means["spark"] - best)


def micrograph_error(
    run: Any, recipe: Recipe, encoder: Callable[..., nn.Module], size: int, gray: bool, pool: Literal["mean", "max"]
) -> float:
    """:func:`hidden_error` of SparK, trained on crops of photographs of stained tissue, cells and a retina, on others.

    size: side of a crop in pixels. gray: one channel instead of three.
    """
    crops = photos(size, 600, gray=gray, seed=run.seed, names=("immunohistochemistry", "cell", "retina"))
    learnt, held_out = crops.split((0.8, 0.2), run.seed)
    trained = pretrained(run, ("spark",), {"spark": recipe}, encoder, learnt.images, pool, "micrographs_")[1]
    return hidden_error(trained["spark"], held_out.images, run.seed)
