"""A simple framework for contrastive learning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor, nn

from flambeau.nn.projector import projector
from flambeau.objectives.contrastive import nt_xent
from flambeau.training.self_supervised.moco import two_views
from flambeau.training.self_supervised.pretrain import PooledFeatures, feature_dim


class SimCLR(nn.Module):
    """Find one's own second view among all views of the batch (Chen et al. 2020, arXiv 2002.05709).

    Arguments as of MoCoV2; `hidden` is the width of the head's middle layer, which has a BatchNorm. group: processes
    whose views are negatives too. Raises ValueError for a backbone that does not take images of `input_shape`.
    """

    def __init__(
        self,
        backbone: nn.Module,
        *,
        input_shape: tuple[int, ...] = (3, 224, 224),
        dim: int = 128,
        hidden: int | None = None,
        temperature: float = 0.5,
        pool: Literal["mean", "max"] = "mean",
        group: Any = None,
    ):
        super().__init__()
        features = feature_dim(backbone, input_shape)
        self.encoder = nn.Sequential(PooledFeatures(backbone, pool), projector((features, hidden or features, dim)))
        self.temperature, self.group = temperature, group

    @property
    def backbone(self) -> nn.Module:
        return self.encoder[0].backbone

    def forward(self, views: Sequence[Float[Tensor, "batch channels height width"]]) -> dict[str, Tensor]:
        """``{"loss"}`` of two views of a batch. Raises ValueError for other than two views, or one image."""
        first, second = two_views(views)
        loss = nt_xent(self.encoder(first), self.encoder(second), temperature=self.temperature, group=self.group)
        return {"loss": loss}
