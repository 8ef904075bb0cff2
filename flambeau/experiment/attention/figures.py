"""Pictures of sparse attention: what finds again, who looks where, what it costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from torch import Tensor


def recall_figure(accuracy: Mapping[str, float], losses: Mapping[str, Sequence[float]], chance: float) -> Figure:
    """Accuracy of every kind of attention beside its training loss."""
    figure = Figure(figsize=(9.5, 3.6))
    left, right = figure.subplots(1, 2)
    colours = {name: f"C{number}" for number, name in enumerate(accuracy)}
    left.barh(list(accuracy), list(accuracy.values()), color=list(colours.values()))
    for row, value in enumerate(accuracy.values()):
        left.text(min(value + 0.02, 0.86), row, f"{value:.2f}", va="center")
    left.axvline(chance, color="0.5", linestyle=":", label="chance")
    left.set(xlim=(0, 1.02), xlabel="accuracy of values looked up beyond the window")
    left.invert_yaxis()
    left.legend(loc="lower right")
    for name, history in losses.items():
        width = max(1, len(history) // 60)
        smooth = np.convolve(history, np.ones(width) / width, "valid")
        right.plot(np.arange(len(smooth)) + width, smooth, label=name, color=colours[name])
    right.set(xlabel="step", ylabel="training loss, nats", ylim=(0, None))
    right.legend()
    figure.tight_layout()
    return figure


def pattern_figure(
    weights: Mapping[str, Float[Tensor, "time time"]], clusters: Int[Tensor, " time"], parts: Sequence[int]
) -> Figure:
    """Attention of one head of each kind, and the cluster that routing put every token in. parts: where the parts of
    the sequence begin."""
    figure = Figure(figsize=(3.9 * len(weights), 4.6))
    axes = figure.subplots(2, len(weights), squeeze=False, height_ratios=(10, 1))
    for (name, matrix), axis in zip(weights.items(), axes[0]):
        axis.imshow(matrix.cpu().numpy() ** 0.5, cmap="magma", vmin=0, vmax=1, interpolation="nearest")
        for start in parts:
            axis.axhline(start - 0.5, color="0.6", linewidth=0.5)
            axis.axvline(start - 0.5, color="0.6", linewidth=0.5)
        axis.set(title=name, xlabel="looked at", ylabel="token")
    strip = axes[1][-1]
    strip.imshow(clusters.cpu().numpy()[None], aspect="auto", cmap=ListedColormap([f"C{n}" for n in range(10)]))
    strip.set(yticks=[], xlabel="cluster of every token")
    for axis in axes[1][:-1]:
        axis.axis("off")
    figure.tight_layout()
    return figure


def cost_figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Products, memory and time over the length, both axes logarithmic."""
    figure = Figure(figsize=(11, 3.4))
    names = list(dict.fromkeys(row["attention"] for row in rows))
    for axis, column in zip(figure.subplots(1, 3), ("million products", "MB for backward", "ms")):
        for name in names:
            own = [row for row in rows if row["attention"] == name]
            axis.loglog([row["tokens"] for row in own], [row[column] for row in own], marker="o", label=name)
        axis.set(xlabel="tokens", ylabel=column)
        axis.set_xticks([row["tokens"] for row in own], [str(row["tokens"]) for row in own], minor=False)
        axis.minorticks_off()
    axis.legend()
    figure.tight_layout()
    return figure
