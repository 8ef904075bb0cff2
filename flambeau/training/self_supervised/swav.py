"""Swapping assignments between views."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from flambeau.nn.projector import projector
from flambeau.objectives.sinkhorn import sinkhorn
from flambeau.training.self_supervised.pretrain import PooledFeatures, feature_dim


class SwAV(nn.Module):
    """Predict, from every view, the prototype that another view of the image is assigned to (arXiv 2006.09882).

    The assignments use all prototypes equally (``sinkhorn``). Views of any sizes: the first `global_views` give
    assignments, all are to predict them (multi-crop, Caron et al. 2020, section 3.2).

    backbone, input_shape, pool: as of MoCoV2. prototypes: their number. temperature: of the predictions. epsilon: of
    the assignments. frozen_steps: training steps at the beginning in which prototypes stay. group: processes whose
    batches are assigned together.

    Raises:
        ValueError: a backbone that does not take such images, or a value out of range.
    """

    steps: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        *,
        input_shape: tuple[int, ...] = (3, 224, 224),
        dim: int = 128,
        hidden: int = 2048,
        prototypes: int = 500,
        temperature: float = 0.1,
        epsilon: float = 0.05,
        frozen_steps: int = 313,
        global_views: int = 2,
        pool: Literal["mean", "max"] = "mean",
        group: Any = None,
    ):
        super().__init__()
        for name, value in (("prototypes", prototypes), ("global_views", global_views)):
            if value < 2:
                raise ValueError(f"{name} must be at least 2, got {value}")
        if not temperature > 0:
            raise ValueError(f"temperature must be positive, got {temperature}")
        features = feature_dim(backbone, input_shape)
        self.encoder = nn.Sequential(PooledFeatures(backbone, pool), projector((features, hidden, dim)))
        self.prototypes = nn.Linear(dim, prototypes, bias=False)
        self.temperature, self.epsilon = temperature, epsilon
        self.frozen_steps, self.global_views, self.group = frozen_steps, global_views, group
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    @property
    def backbone(self) -> nn.Module:
        return self.encoder[0].backbone

    def forward(self, views: Sequence[Float[Tensor, "batch channels _ _"]]) -> dict[str, Tensor]:
        """``{"loss"}``: cross-entropy of each view's prediction with the assignment of each other global view.

        Raises:
            ValueError: fewer views than `global_views`.
        """
        if isinstance(views, Tensor) or len(views) < self.global_views:
            got = "a tensor" if isinstance(views, Tensor) else f"{len(views)} views"
            raise ValueError(f"views must be a list of at least {self.global_views} batches, got {got}")
        frozen = bool(self.steps < self.frozen_steps)
        if self.training:
            self.steps += 1
        weight = F.normalize(self.prototypes.weight, dim=1)
        # Views of one size go through the network as one batch, as in the authors' training.
        vectors = [self.encoder(torch.cat(list(same))) for _, same in groupby(views, key=lambda view: view.shape)]
        scores = F.normalize(torch.cat(vectors), dim=1) @ (weight.detach() if frozen else weight).T
        per_view = scores.chunk(len(views))
        losses = []
        for number in range(self.global_views):
            codes = sinkhorn(per_view[number].detach(), epsilon=self.epsilon, group=self.group)
            others = [view for place, view in enumerate(per_view) if place != number]
            losses += [F.cross_entropy(other / self.temperature, codes) for other in others]
        return {"loss": torch.stack(losses).mean()}
