"""Squared Euclidean distances between two sets of vectors, safe where they are small and bounded in memory."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

DEFAULT_CHUNK = 2**24  # elements of the largest temporary: 64 MiB in float32


def squared_distances(
    a: Float[Tensor, "*batch n dim"],
    b: Float[Tensor, "*batch m dim"],
    *,
    matmul: bool = False,
    chunk: int = DEFAULT_CHUNK,
) -> Float[Tensor, "*batch n m"]:
    """‖aᵢ − bⱼ‖² for every pair; exact zero for equal vectors, never negative.

    The default subtracts before it squares, so no digits cancel when a ≈ b, wherever the origin is. ``matmul=True``
    expands to ‖a‖² + ‖b‖² − 2aᵀb about the mean of ``b`` and clamps at zero: many times faster for thousands of codes,
    with an absolute error of about ε·spread² (distances below it are unreliable).

    Args:
        a: [*batch, n, dim] floating point; leading axes broadcast against those of ``b``.
        b: [*batch, m, dim] of the same dtype.
        matmul: use the expansion.
        chunk: no temporary holds more than this many elements; larger problems go through ``a`` in slices, and
            the slices of differences are recomputed in the backward pass instead of being kept.

    Raises:
        TypeError: integer or differing dtypes.
        ValueError: fewer than two axes, differing last axes, or ``chunk`` < 1.
    """
    _check(a, b, chunk)
    pairwise = _expanded if matmul else _differences
    if matmul:
        centre = b.detach().mean(-2, keepdim=True) if b.shape[-2] else b.new_zeros(b.shape[-1])
        a, b = a - centre, b - centre
    width = b.shape[-2] * (1 if matmul else b.shape[-1])
    rows = _rows_at_once(a, width, chunk)
    if torch.compiler.is_compiling() or rows >= a.shape[-2]:  # compiled code fuses the temporary away
        return pairwise(a, b)
    recompute = not matmul and torch.is_grad_enabled() and (a.requires_grad or b.requires_grad)
    parts = [
        checkpoint(pairwise, part, b, use_reentrant=False, preserve_rng_state=False) if recompute else pairwise(part, b)
        for part in a.split(rows, dim=-2)
    ]
    return torch.cat(parts, dim=-2)


@torch.no_grad()
def nearest(
    a: Float[Tensor, "n dim"],
    b: Float[Tensor, "m dim"],
    k: int = 1,
    *,
    matmul: bool = False,
    chunk: int = DEFAULT_CHUNK,
) -> tuple[Float[Tensor, "n k"], Int[Tensor, "n k"]]:
    """The k vectors of ``b`` nearest to each of ``a``: (squared distances, indices), ascending, without the n×m table.

    Raises:
        ValueError: ``k`` outside [1, m], or the shapes ``squared_distances`` refuses.
    """
    _check(a, b, chunk)
    if not 1 <= k <= b.shape[-2]:
        raise ValueError(f"k: got {k}, expected 1 to {b.shape[-2]} (the number of vectors searched)")
    rows = _rows_at_once(a, b.shape[-2] * (1 if matmul else b.shape[-1]), chunk)
    found = [squared_distances(part, b, matmul=matmul, chunk=chunk).topk(k, largest=False) for part in a.split(rows)]
    return torch.cat([f.values for f in found]), torch.cat([f.indices for f in found])


def _differences(a: Tensor, b: Tensor) -> Tensor:
    return (a.unsqueeze(-2) - b.unsqueeze(-3)).square().sum(-1)


def _expanded(a: Tensor, b: Tensor) -> Tensor:
    products = a @ b.transpose(-1, -2)
    return (a.square().sum(-1).unsqueeze(-1) + b.square().sum(-1).unsqueeze(-2) - 2 * products).clamp(min=0)


def _rows_at_once(a: Tensor, width: int, chunk: int) -> int:
    return max(1, chunk // max(1, width * math.prod(a.shape[:-2])))


def _check(a: Tensor, b: Tensor, chunk: int) -> None:
    if not (a.is_floating_point() and a.dtype == b.dtype):
        raise TypeError(f"a, b: got {a.dtype} and {b.dtype}, expected one floating-point dtype")
    if a.ndim < 2 or b.ndim < 2 or a.shape[-1] != b.shape[-1]:
        raise ValueError(f"a, b: got {tuple(a.shape)} and {tuple(b.shape)}, expected [..., n, dim] and [..., m, dim]")
    if chunk < 1:
        raise ValueError(f"chunk: got {chunk}, expected at least 1 element")
