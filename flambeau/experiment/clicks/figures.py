"""Pictures of click predictors: which pairs of fields they combine, and how well they rank."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from jaxtyping import Float
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor


def pairs_figure(
    matrices: Mapping[str, Float[Tensor, "fields fields"]],
    names: Sequence[str],
    planted: Collection[tuple[int, int]] = (),
) -> Figure:
    """A titled map of each matrix made symmetric, without the diagonal; known pairs are framed."""
    side = max(3.2, 0.32 * len(names))
    figure = Figure(figsize=(side * len(matrices) + 1.6, side + 0.4), layout="constrained")
    for axis, (title, matrix) in zip(figure.subplots(1, len(matrices), squeeze=False)[0], matrices.items()):
        shown = (matrix + matrix.T).cpu().fill_diagonal_(float("nan")) / 2
        figure.colorbar(axis.imshow(shown.numpy(), cmap="viridis"), ax=axis, shrink=0.8)
        for i, j in planted:
            for place in ((i, j), (j, i)):
                axis.add_patch(Rectangle((place[0] - 0.5, place[1] - 0.5), 1, 1, fill=False, edgecolor="red", lw=1.5))
        axis.set_title(title, fontsize=10)
        axis.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
        axis.set_yticks(range(len(names)), names, fontsize=7)
    return figure


def ranking_figure(
    tables: Mapping[str, Sequence[Mapping[str, Any]]], best: Mapping[str, float] | None = None
) -> Figure:
    """Test AUC of every model as a bar, a panel for each table; a line where the true probabilities stand."""
    figure = Figure(figsize=(4.5 * len(tables), 3.4), layout="constrained")
    for axis, (title, rows) in zip(figure.subplots(1, len(tables), squeeze=False)[0], tables.items()):
        ordered = sorted(rows, key=lambda row: row["AUC"])
        colours = ["tab:red" if row["model"].startswith("AutoInt") else "0.6" for row in ordered]
        axis.barh([row["model"] for row in ordered], [row["AUC"] for row in ordered], color=colours)
        if best:
            axis.axvline(best[title], color="black", linestyle=":", label="true probabilities")
            axis.legend(fontsize=7, loc="lower right")
        axis.set_xlim(0.5)
        axis.set_xlabel("test AUC")
        axis.set_title(title, fontsize=10)
    return figure
