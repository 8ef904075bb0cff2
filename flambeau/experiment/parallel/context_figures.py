"""Pictures of what sequences over ranks save, and of a training that is the same either way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure


def capacity_figure(rows: Sequence[dict[str, Any]], budget: int) -> Figure:
    """What fits into the budget of a rank, split by heads and by sequence."""
    figure = Figure(figsize=(8, 3.6))
    axis = figure.subplots()
    places = range(len(rows))
    shares = [row["ratio"] for row in rows]
    axis.bar([place - 0.2 for place in places], [1] * len(rows), 0.4, label="split by heads", color="0.7")
    axis.bar([place + 0.2 for place in places], shares, 0.4, label="split by sequence", color="C0")
    for place, row in zip(places, rows, strict=True):
        axis.text(place - 0.2, 1.03, f"{row['tensor']}", ha="center", fontsize=8)
        axis.text(place + 0.2, row["ratio"] + 0.03, f"{row['ring']}", ha="center", fontsize=8)
    axis.set_xticks(list(places), [row["case"].replace(", ", "\n") for row in rows], fontsize=8)
    axis.set_ylabel("times what tensor parallelism fits")
    axis.set_title(f"in {budget / 2**20:g} MiB of saved activations a rank")
    axis.legend()
    figure.tight_layout()
    return figure


def losses_figure(curves: dict[str, Sequence[float]]) -> Figure:
    """Training losses, and how far apart they are."""
    figure = Figure(figsize=(8, 3.4))
    left, right = figure.subplots(1, 2)
    (first, reference), *others = curves.items()
    left.plot(reference, label=first, color="0.5", linewidth=4, alpha=0.5)
    for name, values in others:
        left.plot(values, label=name)
        right.semilogy([abs(a - b) + 1e-12 for a, b in zip(values, reference, strict=True)], label=name)
    left.set(xlabel="step", ylabel="loss, nats", title="training")
    right.set(xlabel="step", title="difference from one process")
    right.axhline(5e-4, color="0.8")
    left.legend()
    figure.tight_layout()
    return figure
