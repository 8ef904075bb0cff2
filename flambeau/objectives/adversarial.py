"""Images changed within a small box so that a classifier errs."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F


def fgsm(
    model: Callable[[Tensor], Tensor],
    x: Float[Tensor, "batch *shape"],
    labels: Int64[Tensor, " batch"],
    epsilon: float = 8 / 255,
    *,
    bounds: tuple[float, float] | None = (0.0, 1.0),
) -> Float[Tensor, "batch *shape"]:
    """The fast gradient sign method: x + epsilon sign(d loss / d x) (Goodfellow et al. 2015, arXiv 1412.6572).

    Args and errors: as :func:`pgd`.
    """
    return pgd(model, x, labels, epsilon, epsilon, 1, random_start=False, bounds=bounds)


def pgd(
    model: Callable[[Tensor], Tensor],
    x: Float[Tensor, "batch *shape"],
    labels: Int64[Tensor, " batch"],
    epsilon: float = 8 / 255,
    step_size: float = 2 / 255,
    steps: int = 20,
    *,
    random_start: bool = True,
    bounds: tuple[float, float] | None = (0.0, 1.0),
    generator: torch.Generator | None = None,
) -> Float[Tensor, "batch *shape"]:
    """Projected gradient ascent of the cross-entropy within |x' - x| <= epsilon (Madry et al. 2018, arXiv 1706.06083).

    Only the gradient by the images is computed; those of the parameters are not touched. The model is attacked in the
    mode it is in; evaluation (or tune) mode is usual.

    Args:
        model: images to logits [batch, classes].
        labels: the true classes, which the images are moved away from.
        epsilon: half the width of the box, in units of the images.
        step_size: change of each value in a step, likewise.
        random_start: begin at a uniform point of the box instead of at the images.
        bounds: smallest and largest value of an image; None for inputs that are not bounded.
        generator: of the random start, on the CPU.

    Raises:
        ValueError: epsilon or step_size negative, fewer than one step, bounds in the wrong order.
        TypeError: images that are not floating point.
    """
    if not x.is_floating_point():
        raise TypeError(f"x must be floating point, got {x.dtype}")
    if not (epsilon >= 0 and step_size >= 0):
        raise ValueError(f"epsilon and step_size must not be negative, got {epsilon} and {step_size}")
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    if bounds is not None and not bounds[0] < bounds[1]:
        raise ValueError(f"bounds must be (smallest, largest), got {bounds}")
    original = x.detach()
    low, high = original - epsilon, original + epsilon
    if bounds is not None:
        low, high = low.clamp(min=bounds[0]), high.clamp(max=bounds[1])
    moved = original
    if random_start:
        start = torch.rand(original.shape, generator=generator, dtype=torch.float64).to(original)
        moved = torch.clamp(original + epsilon * (2 * start - 1), low, high)
    for _ in range(steps):
        moved = moved.detach().requires_grad_()
        with torch.enable_grad():
            loss = F.cross_entropy(model(moved), labels, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, [moved])
        moved = torch.clamp(moved.detach() + step_size * gradient.sign(), low, high)
    return moved.detach()
