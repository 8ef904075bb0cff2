"""Pictures of a comparison of distillation methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def accuracies_figure(panels: Mapping[str, Mapping[str, Sequence[float]]], teacher: float) -> Figure:
    """Test accuracy of the students, in percent: a panel a task, a bar a method, a dot a repetition."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.6))
    widths = [len(methods) + 1 for methods in panels.values()]
    axes = figure.subplots(1, len(panels), squeeze=False, gridspec_kw=dict(width_ratios=widths))[0]
    for axis, (title, methods) in zip(axes, panels.items()):
        for place, (name, values) in enumerate(methods.items()):
            percent = [100 * value for value in values]
            axis.bar(place, sum(percent) / len(percent), color="0.75" if name == "CE" else "tab:orange")
            axis.plot([place] * len(percent), percent, "o", color="black", markersize=3)
        axis.axhline(100 * teacher, color="tab:blue", ls="--", lw=1, label="teacher")
        lowest = 100 * min([teacher, *(value for values in methods.values() for value in values)])
        axis.set_ylim(max(0, lowest - 2), min(100.5, 100 * teacher + 1.5))
        axis.set_xticks(range(len(methods)), list(methods), rotation=20, fontsize=8)
        axis.set_ylabel("test accuracy (%)")
        axis.set_title(title, fontsize=10)
        axis.legend(fontsize=8)
    figure.tight_layout()
    return figure


def epoch_times_figure(pairs: Mapping[str, Mapping[str, float]]) -> Figure:
    """Milliseconds of an epoch, a group of bars a comparison."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.2))
    axis = figure.subplots()
    names, place = [], 0
    for title, seconds in pairs.items():
        for name, value in seconds.items():
            axis.bar(place, 1e3 * value, color="0.75" if name in ("full", "plain") else "tab:orange")
            names.append(f"{title}\n{name}")
            place += 1
        place += 1
    axis.set_xticks([i for i in range(place) if i % 3 != 2], names, fontsize=8)
    axis.set_ylabel("ms an epoch")
    figure.tight_layout()
    return figure


def losses_figure(curves: Mapping[str, Sequence[float]]) -> Figure:
    """Training losses over steps, all stages after one another."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.4))
    axis = figure.subplots()
    for name, losses in curves.items():
        axis.plot(range(1, len(losses) + 1), losses, label=name, lw=1)
    axis.set_xlabel("step")
    axis.set_ylabel("training loss")
    axis.legend(fontsize=8)
    figure.tight_layout()
    return figure
