"""SiT: a vision transformer that repairs corrupted images, and tells views and rotations apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from flambeau.models.vision.vit import ViT
from flambeau.objectives.contrastive import info_nce, nt_xent
from flambeau.objectives.masking import gmml_corrupt
from flambeau.objectives.reconstruction import masked_error
from flambeau.objectives.rotation import TURNS, random_turns
from flambeau.objectives.uncertainty import UncertaintyWeight
from flambeau.training.ema_teacher import EMATeacher

Corrupt = Callable[[Tensor], tuple[Tensor, Tensor]]
# What an image loses: half of it set to zero, or up to 70 % replaced by noise; or blocks of another image of the batch.
CORRUPT: dict[int, Corrupt] = {
    1: partial(gmml_corrupt, drop=0.7, kinds=("noise",), alien=0.35),
    2: partial(gmml_corrupt, drop=0.5, kinds=("zeros",), alien=0.3),
}
TASKS = {1: ("rec", "con", "rot"), 2: ("rec", "con")}


class ReconstructionHead(nn.Module):
    """Patch tokens to pixels: linear layers with GELU, then one patch of pixels a token."""

    def __init__(self, width: int, channels: int, patch: tuple[int, int], layers: int = 3):
        super().__init__()
        self.mlp = nn.Sequential(*(part for _ in range(layers) for part in (nn.Linear(width, width), nn.GELU())))
        self.pixels = nn.ConvTranspose2d(width, channels, patch, patch)
        _initialise(self.mlp)

    def forward(
        self, tokens: Float[Tensor, "batch tokens width"], grid: tuple[int, int]
    ) -> Float[Tensor, "batch channels height width"]:
        """grid: rows and columns of patches."""
        return self.pixels(self.mlp(tokens).transpose(1, 2).unflatten(2, grid))


class SiT(nn.Module):
    """Self-supervised image transformer: group masked model learning beside a contrastive and a rotation task.

    Version 2 (Atito, Awais and Kittler; released code, commit 7f22e9c): reconstruction, and InfoNCE between the class
    token of a corrupted view and that of an average teacher for the other, clean view. Version 1 (arXiv 2104.03602):
    reconstruction, SimCLR between the contrastive tokens of both views, and the rotation of each view from a token of
    its own; the losses weighted by learned uncertainties.

    Args:
        vit: with 1 class token for version 2, and 2 for version 1 (rotation, contrastive).
        version: the recipe; what is None below is as in it.
        tasks: some of "rec", "con" and (version 1) "rot".
        lambda_rec: weight of the reconstruction among fixed weights; the authors advise 5 for small data.
        temperature: of the contrastive loss; 0.2 (version 2) or 0.5.
        momentum: of the teacher; it rises along a cosine to 1 over `total` steps, if that is given.
        weighting: "fixed" (version 2), or learned as `UncertaintyWeight`'s "sit" (version 1) or "kendall".
        corrupt: ``corrupt(views) -> (corrupted, mask)``.
        rec_over: "corrupted" pixels only, or "all".
        not_square: how rotations treat views that are not square, see `random_turns`.
        hidden, out: sizes of the contrastive head, 4096 (version 2) or 2048, and 256.
        group: processes whose keys are negatives too; "world" for all there are, also if there is just one.

    Raises:
        ValueError: unknown version, task or weighting, or a ViT with another number of class tokens.
    """

    def __init__(
        self,
        vit: ViT,
        version: Literal[1, 2] = 2,
        tasks: Sequence[str] | None = None,
        lambda_rec: float = 1.0,
        temperature: float | None = None,
        momentum: float = 0.996,
        *,
        total: int | None = None,
        weighting: Literal["fixed", "sit", "kendall"] | None = None,
        corrupt: Corrupt | None = None,
        rec_over: Literal["corrupted", "all"] = "corrupted",
        not_square: Literal["raise", "pad", "half"] = "raise",
        hidden: int | None = None,
        out: int = 256,
        group: Any = None,
    ):
        super().__init__()
        if version not in TASKS:
            raise ValueError(f"version must be 1 or 2, got {version!r}")
        tasks = TASKS[version] if tasks is None else tuple(tasks)
        if not tasks or set(tasks) - set(TASKS[version]):
            raise ValueError(f"tasks of version {version} are {TASKS[version]}, got {tasks}")
        if vit.class_tokens != 3 - version:
            raise ValueError(f"version {version} needs a ViT with class_tokens={3 - version}, got {vit.class_tokens}")
        if rec_over not in ("corrupted", "all"):
            raise ValueError(f"rec_over must be 'corrupted' or 'all', got {rec_over!r}")
        weighting = weighting or ("fixed" if version == 2 else "sit")
        self.version, self.tasks, self.lambda_rec = version, tuple(t for t in TASKS[version] if t in tasks), lambda_rec
        self.temperature = temperature or (0.2 if version == 2 else 0.5)
        self.corrupt, self.rec_over, self.not_square = corrupt or CORRUPT[version], rec_over, not_square
        self.group = group
        self.student = nn.ModuleDict({"backbone": vit})
        if "con" in tasks:
            self.student["con_head"] = (
                _head_with_norm(vit.width, hidden or 4096, out)
                if version == 2
                else _head(vit.width, hidden or 2048, out)
            )
        self.teacher = None
        if "con" in tasks and version == 2:
            self.teacher = EMATeacher(self.student, momentum, total=total)
            for module in self.teacher.modules():
                if isinstance(module, nn.BatchNorm1d):
                    module.momentum = 0.0  # it normalises by its own batch, but its running statistics are the average
        if "rec" in tasks:
            layers = 3 if version == 2 else 2
            self.rec_head = ReconstructionHead(vit.width, vit.in_channels, vit.patch, layers)
        if "rot" in tasks:
            self.rot_head = _head(vit.width, hidden or 2048, TURNS)
        self.weights = None if weighting == "fixed" else UncertaintyWeight(len(self.tasks), weighting)

    @property
    def backbone(self) -> ViT:
        """The network that is trained, without heads."""
        return self.student["backbone"]

    def reconstruct(
        self, corrupted: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch channels height width"]:
        """What the network makes of corrupted images. Raises ValueError without the task "rec"."""
        if "rec" not in self.tasks:
            raise ValueError(f"reconstruct needs the task 'rec', got tasks {self.tasks}")
        return self._pixels(self.backbone.tokens(corrupted), corrupted)

    def forward(
        self,
        views: Sequence[Float[Tensor, "batch channels height width"]] | Float[Tensor, "batch channels height width"],
        clean: Sequence[Float[Tensor, "batch channels height width"]] | None = None,
        masks: Sequence[Bool[Tensor, "batch 1 height width"]] | None = None,
        turns: Sequence[Int64[Tensor, " batch"]] | None = None,
    ) -> dict[str, Tensor]:
        """ "loss", and the unweighted loss of each task.

        views: two views of each image (one suffices without "con"), which are turned and corrupted here. With `clean`
        and `masks` they are already corrupted: masks are True where; and turned by `turns` quarters, if that is asked.

        Raises:
            ValueError: views of different shapes or another number, images that the patches do not divide, a mask that
                hides nothing, a batch of one for the contrastive task, or views that are not square for the rotations.
        """
        views = [views] if isinstance(views, Tensor) else list(views)
        self._check(views)
        if self.teacher is not None and self.training and torch.is_grad_enabled():
            self.teacher.update(self.student)
        if clean is None or masks is None:
            if clean is not None or masks is not None or turns is not None:
                raise ValueError("corrupted views need both clean and masks")
            if "rot" in self.tasks:
                turned = [random_turns(view, self.not_square) for view in views]
                views, turns = [view for view, _ in turned], [labels for _, labels in turned]
            clean = views
            pairs = [self.corrupt(view) for view in views]
            views, masks = [view for view, _ in pairs], [mask for _, mask in pairs]
        elif "rot" in self.tasks and turns is None:
            raise ValueError("turns are needed: how views that are already corrupted were turned")

        clean_images, tokens = torch.cat(list(clean)), self.backbone.tokens(torch.cat(views))
        losses = {}
        if "rec" in self.tasks:
            mask = torch.cat(list(masks)).bool()
            where = mask if self.rec_over == "corrupted" else torch.ones_like(mask)
            losses["rec"] = masked_error(self._pixels(tokens, clean_images), clean_images, where)
        if "con" in self.tasks:
            losses["con"] = self._contrast(tokens, clean_images)
        if "rot" in self.tasks:
            assert turns is not None
            losses["rot"] = F.cross_entropy(self.rot_head(tokens[:, 0]), torch.cat(list(turns)))
        if self.weights is not None:
            total = self.weights(list(losses.values()))
        else:
            total = sum((self.lambda_rec if task == "rec" else 1.0) * loss for task, loss in losses.items())
        return {"loss": total, **losses}

    def _contrast(self, tokens: Tensor, clean: Tensor) -> Tensor:
        group = self.group
        if group == "world":
            group = dist.group.WORLD if dist.is_initialized() else None
        first, second = self.student["con_head"](tokens[:, self.backbone.class_tokens - 1]).chunk(2)
        if self.teacher is None:
            return nt_xent(first, second, temperature=self.temperature, group=group)
        with torch.no_grad():
            teacher = self.teacher.module
            keys_first, keys_second = teacher["con_head"](teacher["backbone"].tokens(clean)[:, 0]).chunk(2)
        both = [(first, keys_second), (second, keys_first)]
        # Scaled so that the gradient does not grow as the temperature falls (MoCo v3, arXiv 2104.02057, section 3).
        return sum(
            2 * self.temperature * info_nce(queries, keys, temperature=self.temperature, group=group)
            for queries, keys in both
        )

    def _pixels(self, tokens: Tensor, images: Tensor) -> Tensor:
        rows, columns = self.backbone.patch
        grid = (images.shape[2] // rows, images.shape[3] // columns)
        return self.rec_head(tokens[:, self.backbone.class_tokens :], grid)

    def _check(self, views: list[Tensor]) -> None:
        if not views or any(view.shape != views[0].shape for view in views):
            raise ValueError(f"views must be images of one shape, got {[list(view.shape) for view in views]}")
        if "con" in self.tasks and len(views) != 2:
            raise ValueError(f"the contrastive task needs two views, got {len(views)}")
        if "con" in self.tasks and len(views[0]) < 2:
            raise ValueError("the contrastive task needs at least two images, got a batch of 1")


class SiTClassifier(nn.Module):
    """A pre-trained backbone with the authors' classification heads.

    Version 2: class token and mean patch, through a linear layer, GELU and another. Version 1: the mean of three
    heads, one for each class token and one for the mean patch.
    """

    def __init__(self, backbone: ViT, classes: int):
        super().__init__()
        self.backbone = backbone
        width = backbone.width
        if backbone.class_tokens == 1:
            self.head: nn.Module = nn.Sequential(nn.Linear(2 * width, width), nn.GELU(), nn.Linear(width, classes))
        elif backbone.class_tokens == 2:
            patches = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, classes))
            self.head = nn.ModuleList([nn.Linear(width, classes), nn.Linear(width, classes), patches])
        else:
            raise ValueError(f"backbone must have 1 or 2 class tokens, got {backbone.class_tokens}")
        _initialise(self.head)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        tokens = self.backbone.tokens(x)
        patches = tokens[:, self.backbone.class_tokens :].mean(1)
        if self.backbone.class_tokens == 1:
            return self.head(torch.cat([tokens[:, 0], patches], 1))
        rotation, contrastive, data = self.head
        return (rotation(tokens[:, 0]) + contrastive(tokens[:, 1]) + data(patches)) / 3


def _head(width: int, hidden: int, out: int) -> nn.Sequential:
    return _initialise(
        nn.Sequential(
            nn.Linear(width, hidden, bias=False), nn.GELU(), nn.Linear(hidden, hidden, bias=False), nn.GELU(),
            nn.Linear(hidden, out, bias=False),
        )
    )  # fmt: skip


def _head_with_norm(width: int, hidden: int, out: int) -> nn.Sequential:
    return _initialise(
        nn.Sequential(
            nn.Linear(width, hidden), nn.BatchNorm1d(hidden), nn.ReLU(),
            nn.Linear(hidden, hidden), nn.BatchNorm1d(hidden), nn.GELU(),
            nn.Linear(hidden, out), nn.BatchNorm1d(out, affine=False),
        )
    )  # fmt: skip


def _initialise(module: Any) -> Any:
    """Weights that keep the scale of what they get; the authors' 0.02, made for width 384, starves narrow heads."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.trunc_normal_(part.weight, std=part.in_features**-0.5)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
    return module
