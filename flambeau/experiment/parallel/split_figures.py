"""Figures of a split training; apart from it, so that its processes need not load what draws them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure


def losses_figure(curves: Mapping[str, Sequence[float]]) -> Figure:
    """Loss of each training by step, and how far the others are from the first."""
    figure = Figure(figsize=(9 if len(curves) > 1 else 4.5, 3.6))
    left, *rest = figure.subplots(1, min(2, len(curves)), squeeze=False)[0]
    (name, first), *others = curves.items()
    left.plot(first, label=name, linewidth=4, alpha=0.35)
    for other, losses in others:
        left.plot(losses, label=other, linewidth=1)
        rest[0].plot([abs(a - b) for a, b in zip(losses, first, strict=True)], label=f"{other} against {name}")
        rest[0].set_ylabel("difference of the losses, nats")
        rest[0].set_yscale("log")
    left.set_ylabel("loss, nats a token")
    for axis in (left, *rest):
        axis.set_xlabel("step")
        axis.legend()
    figure.tight_layout()
    return figure


def memory_figure(rows: Sequence[Mapping[str, Any]], whole: int) -> Figure:
    """What a rank holds, by class, as shares of the whole model's state."""
    figure = Figure(figsize=(7, 1.8))
    axis = figure.subplots()
    start = 0.0
    for row in rows:
        if row["class"] != "all":
            share = row["parameters"] / whole
            axis.barh(0, share, left=start, label=f"{row['class']} {100 * share:.1f} %")
            start += share
    axis.set_xlim(0, 1)
    axis.set_yticks([])
    axis.set_xlabel("share of the whole model's parameters, gradients and optimiser held by one process")
    axis.legend(ncols=5, loc="upper center", bbox_to_anchor=(0.5, 1.45), fontsize=8)
    return figure
