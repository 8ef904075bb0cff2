"""Bootstrap your own latent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn

from flambeau.nn.projector import projector
from flambeau.objectives.normalized_mse import normalized_mse
from flambeau.training.ema_teacher import EMATeacher
from flambeau.training.self_supervised.moco import two_views
from flambeau.training.self_supervised.pretrain import PooledFeatures, feature_dim


class BYOL(nn.Module):
    """Predict what a moving average of oneself says of the other view (Grill et al. 2020, arXiv 2006.07733).

    There are no negatives; the loss is the mean of each view's own process, so that processes need no group here (with
    several, let their gradients be averaged and BatchNorm be synchronised).

    backbone, input_shape, pool: as of MoCoV2. dim, hidden: of the head and of the predictor. momentum: of the target at
    the first step; it rises along a cosine to 1 in `steps`, or stays without them.

    Raises:
        ValueError: a backbone that does not take such images, or a momentum out of range.
    """

    def __init__(
        self,
        backbone: nn.Module,
        *,
        input_shape: tuple[int, ...] = (3, 224, 224),
        dim: int = 256,
        hidden: int = 4096,
        momentum: float = 0.996,
        steps: int | None = None,
        pool: Literal["mean", "max"] = "mean",
    ):
        super().__init__()
        features = feature_dim(backbone, input_shape)
        self.encoder = nn.Sequential(PooledFeatures(backbone, pool), projector((features, hidden, dim)))
        self.predictor = projector((dim, hidden, dim))
        self.teacher = EMATeacher(self.encoder, momentum, total=steps)

    @property
    def backbone(self) -> nn.Module:
        return self.encoder[0].backbone

    def forward(self, views: Sequence[Float[Tensor, "batch channels height width"]]) -> dict[str, Tensor]:
        """``{"loss"}``, in [0, 8]: both views' distances. In training the target moves first.

        Raises:
            ValueError: other than two views.
        """
        first, second = two_views(views)
        if self.training:
            self.teacher.update(self.encoder)
        predicted = [self.predictor(self.encoder(view)) for view in (first, second)]
        targets = [self.teacher(view) for view in (second, first)]
        return {"loss": normalized_mse(predicted[0], targets[0]) + normalized_mse(predicted[1], targets[1])}
