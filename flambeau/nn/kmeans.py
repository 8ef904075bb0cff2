"""k-means seeding and Lloyd iterations on tensors."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from flambeau.nn.distances import nearest, squared_distances


@torch.no_grad()
def kmeans_plus_plus(
    points: Float[Tensor, "n dim"], k: int, *, generator: torch.Generator | None = None
) -> Float[Tensor, "k dim"]:
    """k of the points, each drawn with probability proportional to its squared distance to those already drawn.

    Source: Arthur & Vassilvitskii, k-means++ (SODA 2007), with their greedy variant: of 2 + ⌊ln k⌋ draws the one that
    lowers the total distance most is kept. When fewer than k points are distinct the rest are drawn uniformly.

    Raises:
        ValueError: k outside [1, n], or points that are not finite.
    """
    _check(points, k)
    trials = 2 + int(math.log(k))
    chosen = [int(torch.randint(len(points), (1,), generator=generator, device=_device(generator)))]
    closest = squared_distances(points, points[chosen])[:, 0]
    for _ in range(1, k):
        weights = closest if closest.sum() > 0 else torch.ones_like(closest)
        uniform = torch.rand(trials, generator=generator, device=_device(generator)).to(points.device)
        cumulative = weights.double().cumsum(0)
        draws = torch.searchsorted(cumulative, uniform.double() * cumulative[-1], right=True).clamp(max=len(points) - 1)
        candidates = torch.minimum(closest.unsqueeze(1), squared_distances(points, points[draws]))
        best = int(candidates.sum(0).argmin())
        chosen.append(int(draws[best]))
        closest = candidates[:, best]
    return points[chosen].clone()


@torch.no_grad()
def kmeans(
    points: Float[Tensor, "n dim"], k: int, *, iterations: int = 25, generator: torch.Generator | None = None
) -> Float[Tensor, "k dim"]:
    """Centres of Lloyd's algorithm started by k-means++; a centre that loses all its points stays where it was.

    Raises:
        ValueError: k outside [1, n], or points that are not finite.
    """
    centres = kmeans_plus_plus(points, k, generator=generator)
    for _ in range(iterations):
        owner = nearest(points, centres)[1][:, 0]
        count = torch.bincount(owner, minlength=k).to(points.dtype).unsqueeze(1)
        means = torch.zeros_like(centres).index_add_(0, owner, points) / count.clamp(min=1)
        moved = torch.where(count > 0, means, centres)
        if torch.equal(moved, centres):
            break
        centres = moved
    return centres


def _device(generator: torch.Generator | None) -> torch.device:
    return generator.device if generator is not None else torch.device("cpu")


def _check(points: Tensor, k: int) -> None:
    if points.ndim != 2 or not points.is_floating_point():
        raise ValueError(f"points: got {points.dtype} {tuple(points.shape)}, expected floating point [n, dim]")
    if not 1 <= k <= len(points):
        raise ValueError(f"k: got {k}, expected 1 to {len(points)} (the number of points)")
    if not torch.isfinite(points).all():
        raise ValueError("points: got NaN or infinity, expected finite values")
