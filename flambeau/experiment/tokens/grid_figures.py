"""Pictures of token grids and of the models that draw them."""

from __future__ import annotations

from collections.abc import Mapping

from jaxtyping import Int
from matplotlib.figure import Figure
from torch import Tensor

from flambeau.nn.order import Order


def bits_figure(models: Mapping[str, tuple[int, float]]) -> Figure:
    """Bits a token against the forwards a grid takes, one point a model."""
    figure = Figure(figsize=(5.4, 3.6))
    axis = figure.subplots()
    for name, (forwards, bits) in models.items():
        axis.scatter([forwards], [bits], s=60, label=name)
    axis.set_xscale("log", base=2)
    axis.set_xlabel("forwards to draw a grid")
    axis.set_ylabel("bits a token, held out")
    axis.legend()
    figure.tight_layout()
    return figure


def sheet_figure(rows: Mapping[str, Int[Tensor, "batch height width"]], vocab: int, columns: int = 10) -> Figure:
    """A sheet of grids an entry, `columns` to a line, tokens as grey levels."""
    figure = Figure(figsize=(4 * len(rows), 4.4))
    for axis, (title, grids) in zip(figure.subplots(1, len(rows), squeeze=False)[0], rows.items(), strict=True):
        count = min(len(grids), columns * columns) // columns * columns or len(grids)
        grids = grids[:count].cpu().float() / max(vocab - 1, 1)
        lines = grids.unflatten(0, (-1, min(columns, count)))
        axis.imshow(lines.permute(0, 2, 1, 3).flatten(2).flatten(0, 1).numpy(), cmap="gray", vmin=0, vmax=1)
        axis.set_title(title)
        axis.axis("off")
    figure.tight_layout()
    return figure


def order_figure(order: Order) -> Figure:
    """The step in which each cell of a 2-D grid is drawn."""
    figure = Figure(figsize=(3.6, 3.2))
    axis = figure.subplots()
    steps = order.step_of.view(order.grid)
    shown = axis.imshow(steps.numpy(), cmap="viridis")
    for (row, column), step in zip(order.coordinates.tolist(), order.step_of.tolist(), strict=True):
        axis.text(column, row, str(step), ha="center", va="center", color="white", fontsize=7)
    axis.set_title("step in which a cell is drawn")
    axis.axis("off")
    figure.colorbar(shown, ax=axis)
    return figure
