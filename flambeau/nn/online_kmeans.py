"""k-means whose centroids follow the activations they cluster, while a network trains."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from flambeau.nn.kmeans import kmeans

POINTS_PER_CENTROID = 256  # of the first batch, that k-means initialisation looks at


@dataclass(frozen=True)
class Clustering:
    """scores: of every centroid for every point, without gradient. index: the best centroid. loss: mean squared
    distance of the points to their centroid, which pulls the points (and, if they are learned, the centroids)."""

    scores: Float[Tensor, "batch heads points clusters"]
    index: Int[Tensor, "batch heads points"]
    loss: Float[Tensor, ""]


class OnlineKMeans(nn.Module):
    """Centroids per head, kept by exponential moving averages of the points assigned to them.

    ``count <- d count + (1 - d) n_c``, ``sum <- d sum + (1 - d) sum of x``, ``centroid = sum / count`` with Laplace
    smoothing of the counts (van den Oord et al. 2017, arXiv 1711.00937, appendix A.1; as used by the Routing
    Transformer, arXiv 2003.05997, section 4.1). Averages begin at the first centroids with a count of one point each.

    Every forward in training mode updates; evaluation never does, and neither does the recomputation of an activation
    checkpoint, which sees the centroids its forward saw (of the last forward: one forward, then its backward). The
    statistics of all processes of the group are summed. Buffers are in the state dict and stay float32 when the module
    is cast, for a moving average in bfloat16 stalls.

    Args:
        heads: independent sets of centroids.
        clusters: centroids per head.
        dim: size of a point.
        decay: of the averages, in [0, 1); None learns the centroids by gradient instead (the loss then has both terms).
        init: "normal", or from the first batch: "sample" (random points) or "kmeans" (ten Lloyd iterations).
        metric: "dot" assigns to the largest inner product, "euclidean" to the nearest centroid. Equal on a sphere.
        normalize: LayerNorm (without scale and bias) every centroid after each update, onto the sphere of radius
            sqrt(dim) where LayerNormed points lie.
        revive_below: a centroid whose count falls below this share of its head's mean moves to a random point of the
            batch; 0 never.
        eps: of the Laplace smoothing.
        group: processes whose points are counted together; None is all of an initialised torch.distributed.

    Raises:
        ValueError: a size below 1, or decay, init or metric out of range.
    """

    def __init__(
        self,
        heads: int,
        clusters: int,
        dim: int,
        *,
        decay: float | None = 0.999,
        init: Literal["normal", "sample", "kmeans"] = "normal",
        metric: Literal["dot", "euclidean"] = "dot",
        normalize: bool = False,
        revive_below: float = 0.0,
        eps: float = 1e-5,
        group: Any = None,
    ):
        super().__init__()
        for name, size in (("heads", heads), ("clusters", clusters), ("dim", dim)):
            if size < 1:
                raise ValueError(f"{name} must be at least 1, got {size}")
        if decay is not None and not 0 <= decay < 1:
            raise ValueError(f"decay must lie in [0, 1) or be None, got {decay}")
        if init not in ("normal", "sample", "kmeans"):
            raise ValueError(f"init must be 'normal', 'sample' or 'kmeans', got {init!r}")
        if metric not in ("dot", "euclidean"):
            raise ValueError(f"metric must be 'dot' or 'euclidean', got {metric!r}")
        if not 0 <= revive_below < 1:
            raise ValueError(f"revive_below must lie in [0, 1), got {revive_below}")
        self.heads, self.clusters, self.dim = heads, clusters, dim
        self.decay, self.init, self.metric, self.normalize = decay, init, metric, normalize
        self.revive_below, self.eps, self.group = revive_below, eps, group
        centroids = torch.randn(heads, clusters, dim, dtype=torch.float32)
        centroids = F.layer_norm(centroids, (dim,)) if normalize else centroids
        if decay is None:
            self.centroids = nn.Parameter(centroids)
        else:
            self.register_buffer("centroids", centroids)
        self.register_buffer("sums", centroids.clone())
        self.register_buffer("counts", torch.ones(heads, clusters))
        self.register_buffer("started", torch.tensor(init == "normal"))
        self.register_buffer("seen_by_forward", centroids.clone(), persistent=False)

    def forward(
        self, x: Float[Tensor, "batch heads points dim"], mask: Bool[Tensor, "batch points"] | None = None
    ) -> Clustering:
        """Assign, and in training mode follow. `mask`: False on padding, which neither counts nor is in the loss.

        Raises:
            ValueError: a shape that does not fit.
        """
        if x.ndim != 4 or (x.shape[1], x.shape[3]) != (self.heads, self.dim):
            raise ValueError(f"x must be [batch, {self.heads}, points, {self.dim}], got {list(x.shape)}")
        if mask is not None and mask.shape != (x.shape[0], x.shape[2]):
            raise ValueError(f"mask must be [{x.shape[0]}, {x.shape[2]}] like x, got {list(mask.shape)}")
        kind = x.device.type  # the meta device has no autocast to switch off
        with torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext():
            points = x.detach().float()
            if self.init != "normal" and not self.started:
                self._start(points, mask)
            recomputing = _in_backward()
            centroids = self.seen_by_forward if recomputing and self.decay is not None else self.centroids
            scores = self._scores(points, centroids.detach())
            index = scores.argmax(-1)
            loss = self._loss(x, centroids, index, mask)
            if self.training and self.decay is not None and not recomputing:
                self._follow(points, index, mask, self.decay)
        return Clustering(scores, index, loss)

    @property
    def usage(self) -> Float[Tensor, "heads clusters"]:
        """Share of the points that each centroid was assigned, by the moving average."""
        return self.counts / self.counts.sum(-1, keepdim=True)

    @property
    def perplexity(self) -> Float[Tensor, " heads"]:
        """Centroids in use: exp of the entropy of `usage`; `clusters` when all are used alike."""
        usage = self.usage
        return torch.special.entr(usage).sum(-1).exp()

    def _scores(self, points: Tensor, centroids: Tensor) -> Tensor:
        scores = torch.einsum("bhnd,hkd->bhnk", points, centroids)
        return scores if self.metric == "dot" else scores - centroids.pow(2).sum(-1)[:, None] / 2

    def _loss(self, x: Tensor, centroids: Tensor, index: Tensor, mask: Tensor | None) -> Tensor:
        heads = torch.arange(self.heads, device=x.device)[:, None]
        owner = centroids[heads, index]
        distance = (x - owner.detach()).pow(2)
        if self.decay is None:
            distance = distance + (x.detach() - owner).pow(2)
        if mask is None:
            return distance.mean()
        return (distance.mean((1, 3)) * mask).sum() / mask.sum().clamp(min=1)

    @torch.no_grad()
    def _follow(self, points: Tensor, index: Tensor, mask: Tensor | None, decay: float) -> None:
        self.seen_by_forward.copy_(self.centroids)
        assigned = F.one_hot(index, self.clusters).float()
        if mask is not None:
            assigned = assigned * mask[:, None, :, None]
        counts, sums = assigned.sum((0, 2)), torch.einsum("bhnk,bhnd->hkd", assigned, points)
        if self._distributed():
            dist.all_reduce(counts, group=self.group)
            dist.all_reduce(sums, group=self.group)
        self.counts.lerp_(counts, 1 - decay)
        self.sums.lerp_(sums, 1 - decay)
        if self.revive_below:
            self._revive(points, mask)
        total = self.counts.sum(-1, keepdim=True)
        smoothed = (self.counts + self.eps) * total / (total + self.clusters * self.eps)
        centroids = self.sums / smoothed[..., None]
        self.centroids.copy_(F.layer_norm(centroids, (self.dim,)) if self.normalize else centroids)

    def _revive(self, points: Tensor, mask: Tensor | None) -> None:
        mean = self.counts.mean(-1, keepdim=True)
        dead = self.counts < self.revive_below * mean  # equal in all processes, as the counts are
        if dead.any():
            fresh = self._agreed(_random_points(points, self.clusters, mask))
            self.sums.copy_(torch.where(dead[..., None], fresh * mean[..., None], self.sums))
            self.counts.copy_(torch.where(dead, mean, self.counts))

    @torch.no_grad()
    def _start(self, points: Tensor, mask: Tensor | None) -> None:
        if not self.training:
            warnings.warn(
                "OnlineKMeans is evaluated before it has seen a training batch; its centroids are initialised from "
                "this input",
                stacklevel=4,
            )
        valid = points.new_ones(points.shape[0], points.shape[2]) if mask is None else mask
        flat = points.transpose(1, 2)[valid.bool()].transpose(0, 1)  # [heads, points, dim]
        if self.init == "sample" or flat.shape[1] < self.clusters:
            centroids = _random_points(points, self.clusters, mask)
        else:
            few = flat[:, torch.randperm(flat.shape[1], device=flat.device)[: POINTS_PER_CENTROID * self.clusters]]
            centroids = torch.stack([kmeans(head, self.clusters, iterations=10) for head in few])
        centroids = self._agreed(F.layer_norm(centroids, (self.dim,)) if self.normalize else centroids)
        for stored in (self.centroids, self.sums, self.seen_by_forward):
            stored.copy_(centroids)
        self.started.fill_(True)

    def _distributed(self) -> bool:
        return dist.is_available() and dist.is_initialized() and dist.get_world_size(self.group) > 1

    def _agreed(self, chosen: Tensor) -> Tensor:
        """What the first process chose, in all of them."""
        chosen = chosen.contiguous()
        if self._distributed():
            dist.broadcast(chosen, group=self.group, group_src=0)
        return chosen

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> OnlineKMeans:
        """Move like any module, but keep float32 when the network is cast to another dtype."""
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, buffer in before.items():
            moved = self._buffers[name]
            if buffer is not None and moved is not None and moved.dtype != buffer.dtype:
                self._buffers[name] = buffer.to(moved.device)
        return self


def _random_points(points: Tensor, count: int, mask: Tensor | None) -> Float[Tensor, "heads count dim"]:
    """Points drawn from the batch for every head, with repetition, never padding if there is anything else."""
    batch, heads, length, dim = points.shape
    weights = points.new_ones(batch, length) if mask is None else mask.float() + 1e-12
    picks = torch.multinomial(weights.flatten(), heads * count, replacement=True).view(heads, count)
    flat = points.transpose(0, 1).reshape(heads, batch * length, dim)
    return flat.gather(1, picks[..., None].expand(-1, -1, dim))


def _in_backward() -> bool:
    """Whether autograd is running a backward: a forward is then the recomputation of a checkpoint."""
    return torch._C._current_graph_task_id() != -1
