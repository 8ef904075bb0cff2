"""Pictures of how token models were sampled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor


def image_rows_figure(rows: Mapping[str, Float[Tensor, "count channels height width"]]) -> Figure:
    """One titled block of images per entry, eight to a line, side by side."""
    figure = Figure(figsize=(4 * len(rows), 4.4))
    for axis, (title, images) in zip(figure.subplots(1, len(rows), squeeze=False)[0], rows.items()):
        count, channels, height, width = images.shape
        columns = min(8, count)
        images = images[: count // columns * columns].clamp(0, 1).cpu()
        sheet = images.view(-1, columns, channels, height, width).permute(0, 3, 1, 4, 2)
        sheet = sheet.reshape(-1, columns * width, channels)
        axis.imshow(sheet.numpy() if channels == 3 else sheet[..., 0].numpy(), cmap="gray", vmin=0, vmax=1)
        axis.set_title(title)
        axis.axis("off")
    return figure


def acceptance_figure(share: Float[Tensor, "height width"], histogram: Mapping[int, int]) -> Figure:
    """Where drafts were accepted, and how many a forward."""
    figure = Figure(figsize=(8, 3.6))
    left, right = figure.subplots(1, 2)
    shown = left.imshow(share.numpy(), vmin=0, vmax=1, cmap="viridis")
    left.set_title("share of accepted drafts")
    left.set_xlabel("column")
    left.set_ylabel("row")
    figure.colorbar(shown, ax=left)
    right.bar(list(histogram), [count / sum(histogram.values()) for count in histogram.values()])
    right.set_xlabel("drafts accepted in a forward")
    right.set_ylabel("share of forwards")
    figure.tight_layout()
    return figure


def compression_figure(windows: Sequence[int], compression: Mapping[float, Sequence[float]], used: int) -> Figure:
    """Tokens per forward against the window, one line a temperature."""
    figure = Figure(figsize=(5, 3.6))
    axis = figure.subplots()
    for temperature, values in compression.items():
        axis.plot(windows, values, marker="o", label=f"temperature {temperature:g}")
    axis.axvline(used, color="0.8", zorder=0)
    axis.set_xscale("log", base=2)
    axis.set_xticks(list(windows), [str(window) for window in windows])
    axis.set_xlabel("window: tokens per forward fed")
    axis.set_ylabel("tokens per forward committed")
    axis.legend()
    figure.tight_layout()
    return figure
