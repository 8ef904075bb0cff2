"""What merging convolutions and normalisations saves in a model, pair by pair."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from flambeau.deployment.rewriting.conv_bn_pairs import ConvBN, find_conv_bn
from flambeau.deployment.rewriting.deploy_mode import UNSTABLE, FusedBatchNorm, scale_range
from flambeau.deployment.rewriting.tune_mode import tuned, untuned


@dataclass(frozen=True)
class ConvBNTable:
    """The table of :func:`explain_convbn`; ``print`` shows it.

    Attributes:
        rows: one dict a pair: names, mode, bytes of the feature map that tune mode does not keep (None without example
            inputs) and of the copy of the weights that it keeps, smallest and largest |c|, and a note.
        skipped: (name, reason) of every batch normalisation that is in no pair.
    """

    rows: list[dict[str, Any]]
    skipped: list[tuple[str, str]]

    def __str__(self) -> str:
        header = list(self.rows[0])
        cells = [header] + [[_shown(row[name]) for name in header] for row in self.rows]
        widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in cells]
        return "\n".join(lines + [f"skipped {name}: {reason}" for name, reason in self.skipped])


def explain_convbn(model: nn.Module, example_inputs: Any = None) -> ConvBNTable:
    """How each pair of a convolution and a batch normalisation runs now, and what is saved there in tune mode.

    The mode is "train" (statistics of the batch), "eval", "tune", or "deploy" (fused for good).

    Args:
        example_inputs: a tensor, a tuple of arguments or a dict of keyword arguments; gives the sizes of the maps.

    Raises:
        ValueError: no pair, or example inputs are needed to find them.
    """
    names = {module: name for name, module in model.named_modules()}
    fused = [_deployed_row(names[module], module) for module in names if isinstance(module, FusedBatchNorm)]
    pairs: list[ConvBN] = []
    skipped: list[tuple[str, str]] = []
    try:
        with untuned(model):
            pairs, skipped = find_conv_bn(model, example_inputs)
    except ValueError:
        if not fused:
            raise
    return ConvBNTable([_row(pair) for pair in pairs] + fused, skipped)


def _row(pair: ConvBN) -> dict[str, Any]:
    low, high = scale_range(pair.bn)
    if pair.bn.training:
        mode = "train"
    else:
        mode = "tune" if tuned(pair.conv, pair.bn) else "eval"
    note = "unstable in deploy mode" if high > UNSTABLE * low else ""
    if pair.map_bytes is not None and pair.map_bytes < pair.weight_bytes:
        note = "; ".join(filter(None, (note, "tune mode keeps more")))
    return {
        "convolution": pair.conv_name, "normalisation": pair.bn_name, "mode": mode, "map bytes": pair.map_bytes,
        "weight bytes": pair.weight_bytes, "smallest c": low, "largest c": high, "note": note,
    }  # fmt: skip


def _deployed_row(name: str, module: FusedBatchNorm) -> dict[str, Any]:
    low, high = module.scale_range
    note = "unstable in training" if high > UNSTABLE * low else ""
    return {
        "convolution": module.conv_name, "normalisation": name, "mode": "deploy", "map bytes": None, "weight bytes": 0,
        "smallest c": low, "largest c": high, "note": note,
    }  # fmt: skip


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
