"""Momentum contrast."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn

from flambeau.nn.collectives import all_gather
from flambeau.nn.feature_queue import FeatureQueue
from flambeau.nn.projector import projector
from flambeau.objectives.contrastive import info_nce
from flambeau.training.ema_teacher import EMATeacher
from flambeau.training.self_supervised.pretrain import PooledFeatures, feature_dim


class MoCoV2(nn.Module):
    """Find the key of one's own second view among a queue of past keys (Chen et al. 2020, arXiv 2003.04297).

    The key encoder is a moving average of the query encoder; the queue and the average are part of the state.

    backbone: any network, see ``pooled_features``. input_shape: (channels, height, width) of a view. dim: length of the
    compared vectors. hidden: of the head; the backbone's features without one. queue: keys kept, at least a batch of
    all processes. momentum: of the key encoder. pool: how feature maps become a vector. group: processes that share the
    queue; their keys are encoded in a shuffled order, so that BatchNorm cannot tell which key is one's own.

    Raises:
        ValueError: a backbone that does not take such images, or a value out of range.
    """

    def __init__(
        self,
        backbone: nn.Module,
        *,
        input_shape: tuple[int, ...] = (3, 224, 224),
        dim: int = 128,
        hidden: int | None = None,
        queue: int = 65536,
        temperature: float = 0.2,
        momentum: float = 0.999,
        pool: Literal["mean", "max"] = "mean",
        group: Any = None,
    ):
        super().__init__()
        features = feature_dim(backbone, input_shape)
        head = projector((features, hidden or features, dim), norm=False)
        self.encoder = nn.Sequential(PooledFeatures(backbone, pool), head)
        self.teacher = EMATeacher(self.encoder, momentum)
        self.queue = FeatureQueue(queue, dim)
        self.temperature, self.group = temperature, group

    @property
    def backbone(self) -> nn.Module:
        return self.encoder[0].backbone

    def forward(self, views: Sequence[Float[Tensor, "batch channels height width"]]) -> dict[str, Tensor]:
        """``{"loss"}`` of two views of a batch. In training the key encoder moves first, and the keys join the queue.

        Raises:
            ValueError: other than two views.
        """
        first, second = two_views(views)
        if self.training:
            self.teacher.update(self.encoder)
        queries, keys = self.encoder(first), self._keys(second)
        loss = info_nce(queries, keys, negatives=self.queue.vectors, temperature=self.temperature)
        if self.training:
            self.queue.push(keys if self.group is None else all_gather(keys, 0, self.group))
        return {"loss": loss}

    @torch.no_grad()
    def _keys(self, images: Tensor) -> Tensor:
        if self.group is None or not self.training:
            return self.teacher(images)
        rank, count = dist.get_rank(self.group), len(images)
        every = all_gather(images, 0, self.group)
        order = torch.randperm(len(every), device=images.device)
        dist.broadcast(order, group=self.group, group_src=0)
        keys = all_gather(self.teacher(every[order[rank * count : (rank + 1) * count]]), 0, self.group)
        return keys[order.argsort()[rank * count : (rank + 1) * count]]


def two_views(views: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The two views of a batch. Raises ValueError for anything else."""
    if isinstance(views, Tensor) or len(views) != 2 or len(views[0]) != len(views[1]):
        got = f"a tensor {list(views.shape)}" if isinstance(views, Tensor) else f"{[list(v.shape) for v in views]}"
        raise ValueError(f"views must be two batches of as many images, [first, second], got {got}")
    return views[0], views[1]
