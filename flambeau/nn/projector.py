"""The small networks on top of a backbone that self-supervised losses look through."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn


def projector(
    widths: Sequence[int],
    *,
    norm: bool = True,
    final_norm: bool = False,
    activation: Callable[[], nn.Module] = nn.ReLU,
) -> nn.Sequential:
    """Linear layers of ``widths[0] -> widths[1] -> ...``, with BatchNorm and an activation between them.

    The heads of SimCLR and MoCo v2 (`norm` off), BYOL and SwAV (on); Chen et al. 2020, arXiv 2002.05709, section 4.2.
    final_norm: a BatchNorm without scale and shift after the last layer (Chen and He 2021, arXiv 2011.10566). Layers
    before a BatchNorm have no bias, which it would take away.

    Raises:
        ValueError: fewer than two widths, or one below 1.
    """
    if len(widths) < 2 or min(widths) < 1:
        raise ValueError(f"widths must be at least two positive numbers, got {tuple(widths)}")
    layers: list[nn.Module] = []
    for before, after in zip(widths[:-2], widths[1:-1]):
        layers.append(nn.Linear(before, after, bias=not norm))
        if norm:
            layers.append(nn.BatchNorm1d(after))
        layers.append(activation())
    layers.append(nn.Linear(widths[-2], widths[-1], bias=not final_norm))
    if final_norm:
        layers.append(nn.BatchNorm1d(widths[-1], affine=False))
    return nn.Sequential(*layers)
